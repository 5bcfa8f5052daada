#include "server/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

#include <array>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace m2::server {
namespace {

struct FreeContext {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
};
using ContextPtr = std::unique_ptr<SSL_CTX, FreeContext>;

std::string openssl_error() {
  char text[256] = "unknown error";
  if (const unsigned long code = ERR_get_error()) ERR_error_string_n(code, text, sizeof text);
  ERR_clear_error();
  return text;
}

Error bad_file(const char* flag, const std::string& path) {
  return Error{Code::invalid_argument, fmt::format("{} {}: {}", flag, path, openssl_error()), {}};
}

int verify_mode(TlsOptions::ClientCertificate wanted) {
  switch (wanted) {
    case TlsOptions::ClientCertificate::none:
      return SSL_VERIFY_NONE;
    case TlsOptions::ClientCertificate::optional:
      return SSL_VERIFY_PEER;
    case TlsOptions::ClientCertificate::required:
      return SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT;
  }
  return SSL_VERIFY_NONE;
}

Result<void> trust_clients_of(SSL_CTX* context, const TlsOptions& options) {
  SSL_CTX_set_verify(context, verify_mode(options.client_certificate), nullptr);
  if (options.ca_file.empty()) {
    if (options.client_certificate == TlsOptions::ClientCertificate::none) return {};
    return Error{Code::invalid_argument, "--ssl-cert-reqs needs --ssl-ca-certs", {}};
  }
  if (SSL_CTX_load_verify_locations(context, options.ca_file.c_str(), nullptr) != 1)
    return bad_file("--ssl-ca-certs", options.ca_file);
  SSL_CTX_set_client_CA_list(context, SSL_load_client_CA_file(options.ca_file.c_str()));
  return {};
}

Result<ContextPtr> make_context(const TlsOptions& options) {
  ERR_clear_error();
  ContextPtr context(SSL_CTX_new(TLS_server_method()));
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_mode(context.get(), SSL_MODE_RELEASE_BUFFERS);
  const std::string& key = options.key_file.empty() ? options.certificate_file : options.key_file;
  if (SSL_CTX_use_certificate_chain_file(context.get(), options.certificate_file.c_str()) != 1)
    return bad_file("--ssl-certfile", options.certificate_file);
  if (SSL_CTX_use_PrivateKey_file(context.get(), key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context.get()) != 1)
    return bad_file("--ssl-keyfile", key);
  if (!options.ciphers.empty() &&
      SSL_CTX_set_cipher_list(context.get(), options.ciphers.c_str()) != 1)
    return bad_file("--ssl-ciphers", options.ciphers);
  M2_TRY_VOID(trust_clients_of(context.get(), options));
  static constexpr unsigned char kSessionContext[] = "m2";
  SSL_CTX_set_session_id_context(context.get(), kSessionContext, sizeof kSessionContext - 1);
  return context;
}

// What tells a new version of a file from an old one.
using Stamp = std::array<int64_t, 4>;

Stamp stamp_of(const std::string& path) {
  struct stat status {};
  if (path.empty() || ::stat(path.c_str(), &status) != 0) return {};
  return {static_cast<int64_t>(status.st_ino), status.st_mtim.tv_sec, status.st_mtim.tv_nsec,
          status.st_size};
}

std::array<Stamp, 3> stamps_of(const TlsOptions& options) {
  return {stamp_of(options.certificate_file), stamp_of(options.key_file),
          stamp_of(options.ca_file)};
}

}  // namespace

// ---- one connection

struct TlsSession::State {
  SSL* ssl;

  void take_output(std::string& out) {
    BIO* bio = SSL_get_wbio(ssl);
    const size_t size = BIO_ctrl_pending(bio), begin = out.size();
    if (size == 0) return;
    out.resize(begin + size);
    BIO_read(bio, out.data() + begin, static_cast<int>(size));
  }
};

TlsSession::TlsSession(void* ssl) : state_(new State{static_cast<SSL*>(ssl)}) {
  SSL_set_bio(state_->ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  SSL_set_accept_state(state_->ssl);
}

TlsSession::~TlsSession() {
  SSL_free(state_->ssl);
}

bool TlsSession::read(std::string_view sealed, std::string& plain, std::string& out) {
  SSL* ssl = state_->ssl;
  ERR_clear_error();
  BIO_write(SSL_get_rbio(ssl), sealed.data(), static_cast<int>(sealed.size()));
  char text[16 << 10];
  int count = 0;
  while ((count = SSL_read(ssl, text, sizeof text)) > 0)
    plain.append(text, static_cast<size_t>(count));
  const int why = SSL_get_error(ssl, count);
  ERR_clear_error();
  state_->take_output(out);
  return why == SSL_ERROR_WANT_READ;
}

void TlsSession::write(std::string_view plain, std::string& out) {
  // To memory: takes everything at once.
  if (!plain.empty()) SSL_write(state_->ssl, plain.data(), static_cast<int>(plain.size()));
  ERR_clear_error();
  state_->take_output(out);
}

void TlsSession::finish(std::string& out) {
  if (established()) SSL_shutdown(state_->ssl);
  ERR_clear_error();
  state_->take_output(out);
}

bool TlsSession::established() const {
  return SSL_is_init_finished(state_->ssl) == 1;
}

// ---- the server

struct Tls::State {
  TlsOptions options;
  ContextPtr context;
  std::array<Stamp, 3> stamps{};
  Nanos checked = 0;
};

Tls::Tls(TlsOptions options) : state_(new State{std::move(options), nullptr, {}, 0}) {}

Tls::~Tls() = default;

Result<std::unique_ptr<Tls>> Tls::make(TlsOptions options) {
  std::unique_ptr<Tls> tls(new Tls(std::move(options)));
  tls->state_->stamps = stamps_of(tls->state_->options);
  M2_TRY(tls->state_->context, make_context(tls->state_->options));
  return tls;
}

void Tls::refresh() {
  const Nanos now = SteadyClock().now();
  if (now - state_->checked < kSecond) return;
  state_->checked = now;
  const auto stamps = stamps_of(state_->options);
  if (stamps == state_->stamps) return;
  state_->stamps = stamps;
  auto context = make_context(state_->options);
  if (!context) return log_warning("the new certificate is not used: {}", context.error().text);
  state_->context = std::move(*context);
  log_info("the certificate has been read again");
}

std::unique_ptr<TlsSession> Tls::session() {
  if (state_->options.refresh) refresh();
  return std::make_unique<TlsSession>(SSL_new(state_->context.get()));
}

}  // namespace m2::server
