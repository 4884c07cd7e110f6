#include "common/base/checksum.h"

#include <catch2/catch_test_macros.hpp>

#include "common/base/errc.h"
#include "common/base/result.h"

namespace fermata {
namespace {

TEST_CASE("crc32c: RFC 3720 test vectors, and an incremental sum equals the whole", "[base]") {
  const Bytes zeros(32);
  CHECK(crc32c(zeros) == 0x8a9136aaU);
  const Bytes ones(32, std::byte{0xff});
  CHECK(crc32c(ones) == 0x62a8ab43U);
  CHECK(crc32c(as_bytes("56789"), crc32c(as_bytes("1234"))) == crc32c(as_bytes("123456789")));
  CHECK(crc32c(as_bytes("123456789")) == 0xe3069283U);
}

TEST_CASE("chunk_id_of: FIPS 180-2 vector", "[base]") {
  CHECK(chunk_id_of(as_bytes("abc")).hex() ==
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_CASE("Errc: every code survives the wire and has an errno", "[base]") {
  for (int i = 1; i <= 20; ++i) {
    const std::error_code code = static_cast<Errc>(i);
    CAPTURE(code.message());
    CHECK(from_wire(to_wire(code)) == code);
    CHECK(to_errno(code) != 0);
  }
  CHECK(from_wire(to_wire(std::make_error_code(std::errc::no_space_on_device))) ==
        std::errc::no_space_on_device);
  CHECK(to_errno(from_wire(99999)) == EIO);
}

Result<int> half(int x) {
  if (x % 2 != 0) return std::errc::invalid_argument;
  return x / 2;
}
Result<int> quarter(int x) {
  FM_TRY(const int h, half(x));
  FM_TRY(const int q, half(h));
  return q;
}

TEST_CASE("FM_TRY: passes values and leaves with errors", "[base]") {
  CHECK(quarter(8).value() == 2);
  CHECK(quarter(6).error() == std::errc::invalid_argument);
}

}  // namespace
}  // namespace fermata
