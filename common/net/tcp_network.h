// The Network over TCP.
//
// Addresses are HOST:PORT or [IPV6]:PORT; a name is resolved without blocking and its addresses are
// tried in turn. Port 0 listens on any free one.
//
// Handlers: on_connect is asked of accepted connections only, before the reply to their hello;
// on_disconnect is called once for every connection that was open, made or accepted, from inside
// whatever ended it (close() too). A connection stays open, referenced or not, until one end closes
// it or the network is destroyed.
//
// Lifetime: the destructor closes everything. Handlers that were running are cancelled then but end
// a turn later: `co_await stop()` before destroying the handlers' objects, or do not run the
// executor again. The io_context outlives the network.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <memory>
#include <string>

#include "common/net/network_core.h"
#include "common/net/rpc.h"

namespace fermata {

struct HostPort {
  std::string host;  ///< without brackets
  std::string port;  ///< decimal
};
/// EINVAL if it is neither HOST:PORT nor [IPV6]:PORT.
Result<HostPort> parse_address(const std::string& address);

class TcpNetwork final : public Network {
 public:
  explicit TcpNetwork(boost::asio::any_io_executor executor, NetworkOptions options = {});
  ~TcpNetwork() override;

  Task<std::shared_ptr<Connection>> connect(std::string address, Hello hello, Handler* handler,
                                            Duration timeout) override;
  /// The host must be a numeric address or "localhost".
  Result<std::unique_ptr<Listener>> listen(const std::string& address, Hello hello,
                                           Handler& handler) override;
  /// Closes everything and resumes when no handler of this network runs any more.
  boost::asio::awaitable<void> stop();
  const NetworkStats& stats() const override;

 private:
  std::shared_ptr<NetworkCore> core_;
};

}  // namespace fermata
