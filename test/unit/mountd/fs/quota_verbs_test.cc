#include "mountd/fs/quota_verbs.h"

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <optional>

#include "test/support/print.h"

namespace fermata::mountd {
namespace {

struct Asked {
  std::string ask(const std::string& request) {
    QuotaCalls calls;
    calls.set = [this](SetQuotaOp op) -> Status {
      set = std::move(op);
      return answer;
    };
    calls.list = [this](InodeId inode) -> Result<QuotaList> {
      listed = inode;
      return list;
    };
    return answer_quota_verb(request, identity, calls);
  }
  Identity identity;
  Status answer;
  QuotaList list;
  std::optional<SetQuotaOp> set;
  std::optional<InodeId> listed;
};

TEST_CASE("quota verbs: a request becomes a mutation", "[mountd][quota]") {
  Asked asked;
  CHECK(asked.ask(R"({"verb":"quota-set","inode":7,"bytes":4096})") == R"({"done":true})");
  CHECK(asked.set == SetQuotaOp{QuotaKind::kTree, 7, false, 4096, {}});
  REQUIRE(asked.identity.users.add("1000:5000"));
  CHECK(asked.ask(R"({"verb":"quota-set","user":1000,"inodes":0})") == R"({"done":true})");
  CHECK(asked.set == SetQuotaOp{QuotaKind::kUser, 5000, false, {}, 0});
  CHECK(asked.ask(R"({"verb":"quota-rm","inode":7})") == R"({"done":true})");
  CHECK(asked.set == SetQuotaOp{QuotaKind::kTree, 7, true, {}, {}});
}

TEST_CASE("quota verbs: what makes no sense is not asked, and a refusal is said in words",
          "[mountd][quota]") {
  Asked asked;
  for (const char* request :
       {"nonsense", "[]", "{}", R"({"verb":"quota-set"})", R"({"verb":"quota-set","inode":-1})",
        R"({"verb":"quota-set","inode":1,"user":2})", R"({"verb":"quota-set","user":4294967296})",
        R"({"verb":"quota-get"})", R"({"verb":"quota-what","inode":1})"}) {
    CAPTURE(request);
    CHECK(asked.ask(request).find("error") != std::string::npos);
    CHECK(!asked.set);
    CHECK(!asked.listed);
  }
  asked.answer = std::errc::operation_not_permitted;
  CHECK(asked.ask(R"({"verb":"quota-rm","inode":7})").find("only root") != std::string::npos);
}

TEST_CASE("quota verbs: lists name users as this machine does", "[mountd][quota]") {
  Asked asked;
  REQUIRE(asked.identity.users.add("1000:5000"));
  asked.list.quotas = {{QuotaKind::kTree, 7, {}, 4096, 0, 1, 2, QuotaPhase::kCounting, "/d"},
                       {QuotaKind::kUser, 5000, {}, 0, 9, 1, 2, QuotaPhase::kExact, ""}};
  const auto reply = boost::json::parse(asked.ask(R"({"verb":"quota-get","inode":9})"));
  CHECK(asked.listed == InodeId(9));
  const auto& quotas = reply.as_object().at("quotas").as_array();
  REQUIRE(quotas.size() == 2);
  CHECK(quotas[0].as_object().at("path").as_string() == "/d");
  CHECK(quotas[0].as_object().at("state").as_string() == "counting");
  CHECK(quotas[1].as_object().at("user").to_number<std::uint32_t>() == 1000);
}

}  // namespace
}  // namespace fermata::mountd
