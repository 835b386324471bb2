//! Authentication: the methods that the server may request, and the answers.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;

use super::Error;
use super::conninfo::{AuthMethod, ChannelBindingUse, Conninfo, HostSpec, Secret};
use super::stream::Stream;

/// The part of a connection that authentication needs.
pub(super) trait Exchange {
    /// The server's next message. An error message becomes an error.
    fn receive(&mut self) -> Result<Message, Error>;
    /// Sends a message.
    fn send(&mut self, bytes: &[u8]) -> Result<(), Error>;
    /// The underlying stream, for its TLS session.
    fn stream(&self) -> &Stream;
}

/// Answers the server until the server accepts the login.
///
/// `replication` determines the database name for the search in the password file.
pub(super) fn authenticate(
    exchange: &mut dyn Exchange,
    conninfo: &Conninfo,
    host: &HostSpec,
    replication: bool,
) -> Result<(), Error> {
    let client = Client {
        conninfo,
        host,
        replication,
    };
    let mut bound = false;
    // The server may accept the login without requesting anything. The end checks whether that is good
    // enough.
    let mut method = AuthMethod::None;
    loop {
        match exchange.receive()? {
            Message::AuthenticationOk => return client.check_end(method, bound),
            Message::AuthenticationCleartextPassword => {
                method = client.check_allowed(AuthMethod::Password)?;
                client.warn_about_cleartext(exchange.stream());
                client.send_password(exchange, client.password()?.expose())?;
            }
            Message::AuthenticationMd5Password(body) => {
                method = client.check_allowed(AuthMethod::Md5)?;
                let password = client.password()?;
                let user = conninfo.user.as_bytes();
                let hashed = authentication::md5_hash(user, password.expose(), body.salt());
                client.send_password(exchange, hashed.as_bytes())?;
            }
            Message::AuthenticationSasl(body) => {
                method = client.check_allowed(AuthMethod::Scram)?;
                bound = client.scram(exchange, &body)?;
            }
            Message::AuthenticationGss | Message::AuthenticationKerberosV5 | Message::AuthenticationSspi => {
                return Err(Error::authentication(
                    "The server asks for GSSAPI or SSPI authentication, which is not supported",
                )
                .with_hint("Give this role a line with scram-sha-256 or cert in pg_hba.conf"));
            }
            Message::AuthenticationScmCredential => {
                return Err(Error::authentication(
                    "The server asks for the obsolete SCM credential authentication",
                ));
            }
            _ => return Err(Error::protocol("a message that is no part of authentication")),
        }
    }
}

struct Client<'a> {
    conninfo: &'a Conninfo,
    host: &'a HostSpec,
    replication: bool,
}

impl Client<'_> {
    fn password(&self) -> Result<Secret, Error> {
        self.conninfo
            .password_for(self.host, self.replication)
            .ok_or_else(|| {
                let place = match self.conninfo.passfile() {
                    Some(path) => format!("PGPASSWORD or {}", path.display()),
                    None => "PGPASSWORD".to_owned(),
                };
                let database = if self.replication {
                    ", with the database \"replication\""
                } else {
                    ""
                };
                Error::authentication(format!("No password for user \"{}\"", self.conninfo.user))
                    .with_hint(format!("Give it in the connection string, {place}{database}"))
            })
    }

    fn check_allowed(&self, method: AuthMethod) -> Result<AuthMethod, Error> {
        if self.conninfo.auth.channel_binding == ChannelBindingUse::Require && method != AuthMethod::Scram {
            return Err(Error::authentication(
                "Channel binding is required, but the server asks for a password without it",
            ));
        }
        match self.conninfo.auth.allows(method) {
            true => Ok(method),
            false => Err(Error::authentication(format!(
                "The server asks for {} authentication, which require_auth does not allow",
                match method {
                    AuthMethod::None => "no",
                    AuthMethod::Password => "clear text password",
                    AuthMethod::Md5 => "md5",
                    AuthMethod::Scram => "SCRAM-SHA-256",
                }
            ))),
        }
    }

    /// The server has accepted the login. Checks whether the settings accept it, too.
    fn check_end(&self, method: AuthMethod, bound: bool) -> Result<(), Error> {
        if method == AuthMethod::None && !self.conninfo.auth.allows(AuthMethod::None) {
            return Err(Error::authentication(
                "The server did not ask for the authentication that require_auth wants",
            ));
        }
        if self.conninfo.auth.channel_binding == ChannelBindingUse::Require && !bound {
            return Err(Error::authentication(
                "Channel binding is required, but the server let us in without it",
            ));
        }
        Ok(())
    }

    /// libpq sends the password, too, but the user should know about it.
    fn warn_about_cleartext(&self, stream: &Stream) {
        if stream.is_open_to_the_network() {
            tracing::warn!(
                "The {} gets the password in clear text over an unencrypted connection",
                self.host
            );
        }
    }

    fn send_password(&self, exchange: &mut dyn Exchange, password: &[u8]) -> Result<(), Error> {
        let mut buffer = BytesMut::new();
        frontend::password_message(password, &mut buffer)
            .map_err(|_| Error::authentication("The password has a NUL in it"))?;
        exchange.send(&buffer)
    }

    /// SCRAM-SHA-256, bound to the TLS session if both sides support that. Returns whether it was bound.
    ///
    /// Both sides prove that they know the password. A server that accepts the login before its proof is
    /// refused.
    fn scram(&self, exchange: &mut dyn Exchange, body: &AuthenticationSaslBody) -> Result<bool, Error> {
        let (mut offers_plain, mut offers_plus) = (false, false);
        let mut mechanisms = body.mechanisms();
        while let Some(mechanism) = mechanisms
            .next()
            .map_err(|_| Error::protocol("a bad list of mechanisms"))?
        {
            offers_plain |= mechanism == SCRAM_SHA_256;
            offers_plus |= mechanism == SCRAM_SHA_256_PLUS;
        }
        let (mechanism, binding) = self.choose_mechanism(exchange.stream(), offers_plain, offers_plus)?;
        let mut scram = ScramSha256::new(self.password()?.expose(), binding);
        let mut buffer = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut buffer).map_err(Error::from)?;
        exchange.send(&buffer)?;
        let Message::AuthenticationSaslContinue(body) = exchange.receive()? else {
            return Err(Error::protocol("the SCRAM exchange was left by the server"));
        };
        scram
            .update(body.data())
            .map_err(|error| Error::authentication(format!("SCRAM failed: {error}")))?;
        buffer.clear();
        frontend::sasl_response(scram.message(), &mut buffer).map_err(Error::from)?;
        exchange.send(&buffer)?;
        let Message::AuthenticationSaslFinal(body) = exchange.receive()? else {
            return Err(Error::protocol(
                "the server did not prove that it knows the password",
            ));
        };
        scram.finish(body.data()).map_err(|_| {
            Error::authentication("The server could not prove that it knows the password")
                .with_hint("This may not be the server it claims to be")
        })?;
        Ok(mechanism == SCRAM_SHA_256_PLUS)
    }

    fn choose_mechanism(
        &self,
        stream: &Stream,
        offers_plain: bool,
        offers_plus: bool,
    ) -> Result<(&'static str, ChannelBinding), Error> {
        let wish = self.conninfo.auth.channel_binding;
        let end_point = match stream {
            Stream::Tls(tls) if wish != ChannelBindingUse::Disable => super::tls::server_end_point(&tls.conn),
            _ => None,
        };
        match (end_point, offers_plus) {
            (Some(hash), true) => {
                return Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)));
            }
            _ if wish == ChannelBindingUse::Require => {
                let why = match (stream.is_encrypted(), offers_plus) {
                    (false, _) => "the connection is not encrypted",
                    (true, false) => "the server does not offer it",
                    (true, true) => "the server's certificate has no hash function to bind to",
                };
                return Err(Error::authentication(format!(
                    "Channel binding is required, but {why}"
                )));
            }
            _ if !offers_plain => {
                return Err(Error::authentication(
                    "The server offers no authentication that is supported",
                ));
            }
            // This tells the server that the client supports binding but saw no offer. A server that did
            // offer it then knows that someone is in between.
            (Some(_), false) => return Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
            (None, _) => {}
        }
        Ok((SCRAM_SHA_256, ChannelBinding::unsupported()))
    }
}
