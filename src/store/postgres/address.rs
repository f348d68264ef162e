//! Where and how to connect, from the connection address.

use std::time::Duration;

use tokio_postgres_rustls::MakeRustlsConnect;

use super::Error;
use crate::libpq::Address;
use crate::secret::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A peer that is silent for this long is asked, then given up.
const KEEPALIVE: Duration = Duration::from_secs(10);

pub(super) fn parse(address: &Secret) -> Result<(tokio_postgres::Config, MakeRustlsConnect), Error> {
    let refused = |error: crate::libpq::Error| Error::Address(error.to_string());
    let mut address = Address::parse(address).map_err(refused)?;
    let tls = address.connector().map_err(refused)?;
    address
        .config
        .connect_timeout(CONNECT_TIMEOUT)
        .application_name("foregate")
        .keepalives_idle(KEEPALIVE)
        .tcp_user_timeout(KEEPALIVE);
    Ok((address.config, tls))
}
