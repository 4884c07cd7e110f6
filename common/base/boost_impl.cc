// What libraries leave to their users to compile, once for the whole program.
#include <boost/asio/impl/src.hpp>
#include <boost/asio/ssl/impl/src.hpp>
#include <boost/json/src.hpp>

#if FMT_VERSION < 100000  // see pch.h
template void fmt::detail::vformat_to(
    fmt::detail::buffer<char>&, fmt::string_view,
    fmt::basic_format_args<fmt::buffer_context<fmt::type_identity_t<char>>>,
    fmt::detail::locale_ref);
#endif
