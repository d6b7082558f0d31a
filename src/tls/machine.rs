//! The names and addresses of this machine, for certificates.

use std::net::IpAddr;

/// Maximum number of addresses: each is part of the certificate, which every handshake transfers.
const ADDRESSES_MAX: usize = 64;

/// Returns the host name of this machine in lower case, if it can be part of a certificate.
#[cfg(unix)]
pub(crate) fn machine_name() -> Option<String> {
    valid(rustix::system::uname().nodename().to_str().ok()?)
}

/// Returns the host name of this machine in lower case, if it can be part of a certificate.
#[cfg(not(unix))]
pub(crate) fn machine_name() -> Option<String> {
    valid(&std::env::var("COMPUTERNAME").ok()?)
}

fn valid(name: &str) -> Option<String> {
    let is_valid = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
    is_valid.then(|| name.to_ascii_lowercase())
}

/// Returns the addresses of all network interfaces, up to a limit. Link-local addresses are not included: they are used with
/// the name of an interface, which certificates do not have.
pub(crate) fn interface_addresses() -> Vec<IpAddr> {
    match if_addrs::get_if_addrs() {
        Ok(interfaces) => {
            let addresses = interfaces.iter().map(if_addrs::Interface::ip);
            let is_link_local = |address: &IpAddr| match address {
                IpAddr::V4(address) => address.is_link_local(),
                IpAddr::V6(address) => address.is_unicast_link_local(),
            };
            addresses.filter(|address| !is_link_local(address)).take(ADDRESSES_MAX).collect()
        }
        Err(error) => {
            log::warn!("cannot list the network interfaces: {error}");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_one_of_this_machine() {
        let addresses = interface_addresses();
        assert!(addresses.iter().any(IpAddr::is_loopback), "{addresses:?}");
    }

    #[test]
    fn names_with_spaces_are_omitted() {
        assert_eq!(valid("Host-1.example"), Some("host-1.example".into()));
        assert_eq!((valid(""), valid("a b"), valid("\u{fc}")), (None, None, None));
    }
}
