#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace m2::server {

struct TlsOptions {
  std::string certificate_file;  // PEM, with its chain; empty: no TLS
  std::string key_file;          // PEM; empty: in the certificate's file
  std::string ca_file;           // PEM: who signs the certificates of clients
  enum class ClientCertificate { none, optional, required };
  ClientCertificate client_certificate = ClientCertificate::none;
  std::string ciphers;   // of TLS 1.2, in OpenSSL's notation; empty: OpenSSL's choice
  bool refresh = false;  // read the files again when they change
};

// One connection's TLS: bytes in, bytes out, no socket. Not thread-safe.
class TlsSession {
 public:
  explicit TlsSession(void* ssl);  // an SSL*, taken over
  ~TlsSession();

  // Reads what came from the client: appends the text it carries to `plain`, and what the protocol
  // itself has to say to `out`. False if the connection cannot go on; `out` may hold an alert.
  bool read(std::string_view sealed, std::string& plain, std::string& out);
  // Appends `plain` sealed. Precondition: established().
  void write(std::string_view plain, std::string& out);
  // Appends the notice that nothing more will be written.
  void finish(std::string& out);
  bool established() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The certificate and rules of a server, TLS 1.2 and later. session() is for one thread.
class Tls {
 public:
  // Errors name the file at fault.
  static Result<std::unique_ptr<Tls>> make(TlsOptions options);
  ~Tls();

  // A session for a connection just accepted. With `refresh`, files that have changed are read
  // first; if they cannot be used, the old ones stay and the log says why.
  std::unique_ptr<TlsSession> session();

 private:
  explicit Tls(TlsOptions options);
  void refresh();

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace m2::server
