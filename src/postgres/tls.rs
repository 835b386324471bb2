//! TLS with the rules of libpq's `sslmode`, implemented with rustls.
//!
//! Three customs of PostgreSQL that web libraries do not share are kept, because people's servers depend on them: a
//! self-signed server certificate may be its own trusted root; a host name may be in the certificate's common name if
//! it has no DNS names; and `verify-ca` does not check names.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, IpAddr, Ipv4Addr, PrivateKeyDer, ServerName, UnixTime,
};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::{Any, Decode, SliceReader, Tag, TagNumber, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::Error;
use super::conninfo::{Host, HostSpec, RootCertificates, SslMode, TlsSettings, TlsVersion};
use super::stream::Socket;

/// The name of PostgreSQL's protocol in TLS, needed for TLS without a request.
const ALPN_POSTGRESQL: &[u8] = b"postgresql";

/// Encrypts the connection, and checks the server's certificate as far as the settings require it.
pub(super) fn handshake(
    socket: Socket,
    settings: &TlsSettings,
    host: &HostSpec,
) -> Result<Box<StreamOwned<ClientConnection, Socket>>, Error> {
    let name = match &host.host {
        Host::Tcp { name: Some(name), .. } => Some(name.clone()),
        Host::Tcp { address, .. } => address.map(|address| address.to_string()),
        _ => None,
    };
    let config = client_config(settings, name.as_deref())?;
    // A name that cannot be in a certificate only matters to verify-full, whose verifier has the name itself.
    let server_name = name
        .and_then(|name| ServerName::try_from(name).ok())
        .unwrap_or_else(|| ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from([127, 0, 0, 1]))));
    let connection = ClientConnection::new(Arc::new(config), server_name)
        .map_err(|error| Error::tls(format!("TLS could not be set up: {error}")))?;
    let mut stream = Box::new(StreamOwned::new(connection, socket));
    while stream.conn.is_handshaking() {
        stream
            .conn
            .complete_io(&mut stream.sock)
            .map_err(handshake_error)?;
    }
    Ok(stream)
}

fn handshake_error(error: io::Error) -> Error {
    let Some(tls) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return match Error::from(error) {
            Error::Closed => Error::tls("The server closed the connection during the TLS handshake")
                .with_hint("The server's log says why"),
            other => other,
        };
    };
    let hint = match tls {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "The certificate is not signed by an authority of sslrootcert"
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "Connect with a host name that is in the certificate, or use sslmode=verify-ca",
        rustls::Error::AlertReceived(_) => "The server refused; its log says why",
        _ => "",
    };
    let error = Error::tls(format!("TLS handshake failed: {tls}"));
    if hint.is_empty() {
        error
    } else {
        error.with_hint(hint)
    }
}

fn client_config(settings: &TlsSettings, name: Option<&str>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(settings))
        .map_err(|error| Error::tls(format!("TLS could not be set up: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(settings, name, provider)?));
    let mut config = match client_certificate(settings)? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            Error::tls(format!(
                "The client certificate and its key cannot be used: {error}"
            ))
        })?,
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = settings.send_server_name;
    if settings.direct {
        config.alpn_protocols = vec![ALPN_POSTGRESQL.to_vec()];
    }
    Ok(config)
}

fn versions(settings: &TlsSettings) -> Vec<&'static SupportedProtocolVersion> {
    [
        (TlsVersion::V1_2, &rustls::version::TLS12),
        (TlsVersion::V1_3, &rustls::version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (settings.min_version..=settings.max_version).contains(version))
    .map(|(_, version)| version)
    .collect()
}

type ClientIdentity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The client's certificate and key, if it has one.
fn client_certificate(settings: &TlsSettings) -> Result<Option<ClientIdentity>, Error> {
    let Some(path) = &settings.certificate else {
        return Ok(None);
    };
    if !settings.certificate_required && !path.exists() {
        return Ok(None);
    }
    let chain = read_pem::<CertificateDer<'static>>(path, "certificate file")?;
    let Some(key_path) = &settings.key else {
        return Err(
            Error::tls(format!("Certificate {} has no private key", path.display()))
                .with_hint("Name the key file with sslkey"),
        );
    };
    check_key_permissions(key_path)?;
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| {
        let error = Error::tls(format!(
            "Could not load private key file {}: {error}",
            key_path.display()
        ));
        error.with_hint("It must be an unencrypted PEM key")
    })?;
    Ok(Some((chain, key)))
}

/// Refuses a key that others can read. A key of root may be readable for its group.
fn check_key_permissions(path: &Path) -> Result<(), Error> {
    let metadata = std::fs::metadata(path).map_err(|error| {
        Error::tls(format!(
            "Could not read private key file {}: {error}",
            path.display()
        ))
    })?;
    if !metadata.is_file() {
        return Err(Error::tls(format!(
            "Private key file {} is not a regular file",
            path.display()
        )));
    }
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & forbidden != 0 {
        return Err(Error::tls(format!(
            "Private key file {} has group or world access",
            path.display()
        ))
        .with_hint("Permissions must be u=rw (0600) or less, or u=rw,g=r (0640) or less if root owns it"));
    }
    Ok(())
}

/// All items of one kind in a PEM file; at least one.
fn read_pem<T: PemObject>(path: &Path, what: &str) -> Result<Vec<T>, Error> {
    let failed = |reason: String| Error::tls(format!("Could not load {what} {}: {reason}", path.display()));
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let items: Vec<T> = T::pem_reader_iter(BufReader::new(file))
        .collect::<Result<_, _>>()
        .map_err(|error| failed(error.to_string()))?;
    match items.is_empty() {
        true => Err(failed("there is none in it".to_owned())),
        false => Ok(items),
    }
}

/// The trusted authorities, if the settings name an existing file.
fn roots(settings: &TlsSettings) -> Result<Option<Vec<CertificateDer<'static>>>, Error> {
    match &settings.roots {
        Some(RootCertificates::System) => {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!("Could not read one of the system's root certificates: {error}");
            }
            match found.certs.is_empty() {
                true => Err(Error::tls("The system has no root certificates")
                    .with_hint("Install the package ca-certificates, or name a file with sslrootcert")),
                false => Ok(Some(found.certs)),
            }
        }
        Some(RootCertificates::File(path)) if path.exists() => {
            read_pem(path, "root certificate file").map(Some)
        }
        Some(RootCertificates::File(path)) if settings.mode >= SslMode::VerifyCa => Err(Error::tls(format!(
            "Root certificate file {} does not exist",
            path.display()
        ))
        .with_hint(
            "Provide the file, use the system's trusted roots with sslrootcert=system, or change sslmode",
        )),
        None if settings.mode >= SslMode::VerifyCa => Err(Error::tls(
            "No home directory to look for the root certificates in",
        )
        .with_hint("Name the file with sslrootcert")),
        _ => Ok(None),
    }
}

/// Checks the server's certificate.
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None` accepts any certificate.
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
    /// The name that the certificate must be for; `None` accepts any.
    name: Option<String>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("name", &self.name)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

impl Verifier {
    fn new(settings: &TlsSettings, name: Option<&str>, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let name = match (settings.mode, name) {
            (SslMode::VerifyFull, None) => {
                return Err(Error::tls("A host name must be given for sslmode=verify-full"));
            }
            (SslMode::VerifyFull, Some(name)) => Some(name.to_owned()),
            _ => None,
        };
        let Some(roots) = roots(settings)? else {
            return Ok(Self {
                provider,
                chain: None,
                roots: Vec::new(),
                name,
            });
        };
        let mut store = RootCertStore::empty();
        let (_, unusable) = store.add_parsable_certificates(roots.iter().cloned());
        if unusable > 0 {
            tracing::warn!("{unusable} of the trusted root certificates cannot be used");
        }
        let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
        if let Some(path) = &settings.revocation_list {
            let lists =
                read_pem::<CertificateRevocationListDer<'static>>(path, "certificate revocation list")?;
            builder = builder.with_crls(lists).allow_unknown_revocation_status();
        }
        let chain = builder
            .build()
            .map_err(|error| Error::tls(format!("The trusted root certificates cannot be used: {error}")))?;
        Ok(Self {
            provider,
            chain: Some(chain),
            roots,
            name,
        })
    }

    fn algorithms(&self) -> &rustls::crypto::WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    fn check_name(
        &self,
        certificate: &CertificateDer<'_>,
        error: rustls::Error,
    ) -> Result<(), rustls::Error> {
        match &self.name {
            None => Ok(()),
            Some(name) if is_for_name(certificate, name) => Ok(()),
            Some(_) => Err(error),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        let wrong_name = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        if self.roots.iter().any(|root| root == end_entity) {
            check_dates(end_entity, now)?;
            self.check_name(end_entity, wrong_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        // This check tests the name last, so an error about the name means that the chain is valid.
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            Ok(_) => self.check_name(end_entity, wrong_name)?,
            Err(
                error @ rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ),
            ) => self.check_name(end_entity, error)?,
            Err(error) => return Err(error),
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// Checks the dates of a certificate that is itself trusted.
fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = Certificate::from_der(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let validity = parsed.tbs_certificate().validity();
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(rustls::Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

/// libpq's rule: the certificate's DNS names and addresses, and its common name if there are no DNS names
/// (for an address: neither DNS names nor addresses).
fn is_for_name(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(parsed) = Certificate::from_der(certificate) else {
        return false;
    };
    let tbs = parsed.tbs_certificate();
    let names = match tbs.get_extension::<SubjectAltName>() {
        Ok(extension) => extension.map_or_else(Vec::new, |(_, names)| names.0),
        Err(_) => return false,
    };
    let address: Option<std::net::IpAddr> = name.parse().ok();
    let has_dns = names.iter().any(|name| matches!(name, GeneralName::DnsName(_)));
    let has_address = names.iter().any(|name| matches!(name, GeneralName::IpAddress(_)));
    let listed = names.iter().any(|listed| match (listed, address) {
        (GeneralName::DnsName(pattern), _) => name_matches(pattern.as_str(), name),
        (GeneralName::IpAddress(bytes), Some(std::net::IpAddr::V4(it))) => bytes.as_bytes() == it.octets(),
        (GeneralName::IpAddress(bytes), Some(std::net::IpAddr::V6(it))) => bytes.as_bytes() == it.octets(),
        _ => false,
    });
    let common_name_counts = !(has_dns || has_address && address.is_some());
    let common_name = || tbs.subject().common_name().ok().flatten();
    listed
        || (common_name_counts && common_name().is_some_and(|pattern| name_matches(&pattern.value(), name)))
}

/// A wildcard matches the first label only.
fn name_matches(pattern: &str, name: &str) -> bool {
    if pattern.eq_ignore_ascii_case(name) {
        return true;
    }
    let is_address = name.parse::<std::net::IpAddr>().is_ok();
    let (Some(tail), false) = (pattern.strip_prefix("*."), is_address) else {
        return false;
    };
    let enough_labels = tail.contains('.');
    enough_labels
        && name
            .split_once('.')
            .is_some_and(|(first, rest)| !first.is_empty() && rest.eq_ignore_ascii_case(tail))
}

/// The hash of the server's certificate for the channel binding `tls-server-end-point` (RFC 5929).
///
/// `None` if the signature algorithm does not have a single hash function, such as Ed25519.
pub(super) fn server_end_point(connection: &ClientConnection) -> Option<Vec<u8>> {
    let certificate = connection.peer_certificates()?.first()?;
    let parsed = Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm();
    let oid = match algorithm.oid {
        // RSASSA-PSS names its hash in its parameters.
        oid if oid == RSA_PSS => pss_hash(algorithm.parameters.as_ref()?)?,
        oid => oid,
    };
    Some(match HASHES.iter().find(|(known, _)| *known == oid)?.1 {
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

#[derive(Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");

/// Signature algorithms, and the bare hashes of RSASSA-PSS. MD5 and SHA-1 count as SHA-256.
#[rustfmt::skip]
const HASHES: [(ObjectIdentifier, Hash); 12] = [
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.4"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.5"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13"), Hash::Sha512),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.1"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4"), Hash::Sha512),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1"), Hash::Sha256),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.2"), Hash::Sha384),
    (ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.3"), Hash::Sha512),
];

/// The hash in the parameters of RSASSA-PSS: the algorithm in their field 0.
fn pss_hash(parameters: &Any) -> Option<ObjectIdentifier> {
    let mut fields = SliceReader::new(parameters.value()).ok()?;
    let first = Any::decode(&mut fields).ok()?;
    let is_hash = first.tag()
        == Tag::ContextSpecific {
            constructed: true,
            number: TagNumber(0),
        };
    let algorithm = AlgorithmIdentifierOwned::from_der(first.value()).ok()?;
    is_hash.then_some(algorithm.oid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_one_label() {
        let cases = [
            ("db.example.com", "DB.example.com", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.com", "example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.1", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(name_matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
