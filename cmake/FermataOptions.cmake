# Compiler flags and the two functions every folder uses.
include(GNUInstallDirs)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers need this sloppiness to be cached at all; "depend" saves a preprocessor run per unit.
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros CCACHE_DEPEND=true
      ${CCACHE_PROGRAM})
endif()

add_library(fermata_options INTERFACE)
target_include_directories(fermata_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
target_compile_options(fermata_options INTERFACE -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
                                                 -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 warns falsely in coroutine frames and in inlined std::string copies.
  target_compile_options(fermata_options INTERFACE -Wno-maybe-uninitialized -Wno-restrict -fcoroutines
                                                   -Wno-stringop-overflow -Wno-stringop-overread -Wno-mismatched-new-delete -Wno-array-bounds -Wno-dangling-reference)
  # Half a GiB before the compiler collects its garbage: some percent of its time.
  target_compile_options(fermata_options INTERFACE --param=ggc-min-heapsize=524288)
  target_compile_options(fermata_options INTERFACE $<$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>:-Wno-error=unused-result>)
endif()
if(CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
  # -g1 keeps backtraces and halves link time and size.
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1 -DNDEBUG")
elseif(CMAKE_BUILD_TYPE STREQUAL "Debug")
  set(CMAKE_CXX_FLAGS_DEBUG "-Og -g1")
endif()
if(FERMATA_WERROR)
  target_compile_options(fermata_options INTERFACE -Werror)
endif()
if(FERMATA_SANITIZE)
  target_compile_options(fermata_options INTERFACE -fsanitize=${FERMATA_SANITIZE} -fno-sanitize-recover=undefined)
  target_link_options(fermata_options INTERFACE -fsanitize=${FERMATA_SANITIZE})
  target_compile_definitions(fermata_options INTERFACE FERMATA_SANITIZE="${FERMATA_SANITIZE}")
  if(FERMATA_SANITIZE MATCHES "thread")
    target_compile_options(fermata_options INTERFACE -Wno-tsan)
  endif()
endif()
target_compile_definitions(fermata_options INTERFACE
  BOOST_ASIO_SEPARATE_COMPILATION BOOST_ASIO_NO_DEPRECATED BOOST_ASIO_DISABLE_BOOST_COROUTINE
  FERMATA_VERSION="${PROJECT_VERSION}")

# fermata_library(NAME [DEPS target...] [NO_PCH]): a static library of every .cc in this folder.
function(fermata_library name)
  cmake_parse_arguments(ARG "NO_PCH" "" "DEPS;SOURCES" ${ARGN})
  if(NOT ARG_SOURCES)
    file(GLOB ARG_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
    list(FILTER ARG_SOURCES EXCLUDE REGEX "/main\\.cc$")
  endif()
  if(NOT ARG_SOURCES)
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE fermata_options ${ARG_DEPS})
    return()
  endif()
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC fermata_options ${ARG_DEPS})
  if(NOT ARG_NO_PCH AND TARGET fermata_pch)
    target_precompile_headers(${name} REUSE_FROM fermata_pch)
    target_link_libraries(${name} PUBLIC fermata_pch)
  endif()
endfunction()

# fermata_test(NAME [DEPS target...] [LABELS label...] [TIMEOUT seconds]): a Catch2 program of every .cc in this
# folder and below, registered with ctest as one test.
function(fermata_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "DEPS;LABELS;SOURCES;ARGS" ${ARGN})
  if(NOT ARG_SOURCES)
    file(GLOB_RECURSE ARG_SOURCES CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/*.cc)
  endif()
  if(NOT ARG_SOURCES)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE fermata_options fermata_test_support ${ARG_DEPS} Catch2::Catch2WithMain)
  target_precompile_headers(${name} REUSE_FROM fermata_test_support)
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if(ARG_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}")
  endif()
  if(ARG_TIMEOUT)
    set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  endif()
endfunction()
