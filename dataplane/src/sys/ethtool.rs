//! A NIC's receive-side scaling by the ethtool ioctl (linux/ethtool.h).
//!
//! The netlink form (`ETHTOOL_MSG_RSS_GET`) is the newer one, but Debian 12's kernel 6.1 lacks it, its
//! replies have the hashed fields only since 6.17, and every kernel answers the ioctl: so the ioctl is
//! the one path. The older `ETHTOOL_GRXFHINDIR` gives the table without the key, which tells no queue.
#![allow(unsafe_code, reason = "one of the rooms for it: an ioctl over a buffer")]

use std::io;
use std::os::fd::AsRawFd;

/// What the driver reports of its default RSS context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RssConfig {
    /// One bit of `ETH_RSS_HASH_*`; 0: the driver does not say.
    pub hash_function: u8,
    /// `RXH_XFRM_*` bits; kernels before 6.8 leave 0.
    pub input_transform: u8,
    pub key: Vec<u8>,
    pub indirection: Vec<u16>,
}

/// Flow types whose hashed fields can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowType {
    Tcp4 = 0x01,
    Udp4 = 0x02,
    Tcp6 = 0x05,
    Udp6 = 0x06,
}

impl FlowType {
    /// As `ethtool -N ... rx-flow-hash` spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Udp4 => "udp4",
            Self::Tcp6 => "tcp6",
            Self::Udp6 => "udp6",
        }
    }
}

/// `ETH_RSS_HASH_TOP`.
pub const HASH_TOEPLITZ: u8 = 1;
/// `RXH_XFRM_SYM_XOR`.
pub const TRANSFORM_SYMMETRIC_XOR: u8 = 1;
/// `RXH_IP_SRC | RXH_IP_DST`.
pub const FIELDS_ADDRESSES: u64 = 1 << 4 | 1 << 5;
/// ... `| RXH_L4_B_0_1 | RXH_L4_B_2_3`.
pub const FIELDS_ADDRESSES_AND_PORTS: u64 = FIELDS_ADDRESSES | 1 << 6 | 1 << 7;

const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GRSSH: u32 = 0x46;

/// `struct ethtool_rxfh` without its flexible tail, in 32-bit words: cmd, rss_context, indir_size,
/// key_size, (hfunc, input_xfrm, 2 reserved bytes), reserved.
const RXFH_WORDS: usize = 6;
/// Beyond any hardware's; a driver's answer is checked before memory is taken for it.
const MAX_TABLE: u32 = 1 << 16;
const MAX_KEY: u32 = 1 << 10;
/// `struct ethtool_rxnfc` has 192 bytes on 64-bit machines, and newer fields go to the unions in it.
const RXNFC_WORDS: usize = 64;

/// A hash function's name for people.
#[must_use]
pub fn hash_function_name(function: u8) -> String {
    match function {
        0 => "unnamed".into(),
        1 => "toeplitz".into(),
        2 => "xor".into(),
        4 => "crc32".into(),
        other => format!("unknown ({other:#x})"),
    }
}

/// Reads key, table, function and transform (`ETHTOOL_GRSSH`). Needs no privilege.
///
/// # Errors
/// `EOPNOTSUPP` where the driver has none, `ENODEV` for an unknown interface, `InvalidData` for
/// an answer out of bounds, and what else the system call says.
pub fn rss_config(interface: &str) -> io::Result<RssConfig> {
    let mut sizes = vec![0_u32; RXFH_WORDS];
    sizes[0] = ETHTOOL_GRSSH;
    // SAFETY: GRSSH with both sizes 0 reads and writes `struct ethtool_rxfh` alone: the 6 words that
    // `sizes` has.
    unsafe { ethtool(interface, &mut sizes) }?;
    let (table, key) = (sizes[2], sizes[3]);
    if table > MAX_TABLE || key > MAX_KEY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a table of {table} and a key of {key} bytes")));
    }

    let mut answer = vec![0_u32; RXFH_WORDS + table as usize + (key as usize).div_ceil(4)];
    answer[0] = ETHTOOL_GRSSH;
    answer[2] = table;
    answer[3] = key;
    // SAFETY: with the sizes set, GRSSH writes the struct, then `indir_size` words and `key_size`
    // bytes; it refuses (EINVAL) sizes that are not the driver's own, so it writes no more than `answer` has.
    unsafe { ethtool(interface, &mut answer) }?;
    decode(&answer, table as usize, key as usize)
}

fn decode(answer: &[u32], table: usize, key: usize) -> io::Result<RssConfig> {
    let [hash_function, input_transform, ..] = answer[4].to_ne_bytes();
    let (entries, key_words) = answer[RXFH_WORDS..].split_at(table);
    let indirection = entries.iter().map(|&queue| u16::try_from(queue)).collect::<Result<_, _>>().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "a queue number above 65535 in the indirection table")
    })?;
    let key = key_words.iter().flat_map(|word| word.to_ne_bytes()).take(key).collect();
    Ok(RssConfig { hash_function, input_transform, key, indirection })
}

/// The fields hashed for a flow type (`ETHTOOL_GRXFH`): `RXH_*` bits. Needs no privilege.
///
/// # Errors
/// As [`rss_config`].
pub fn hash_fields(interface: &str, flow: FlowType) -> io::Result<u64> {
    let mut request = vec![0_u32; RXNFC_WORDS];
    request[0] = ETHTOOL_GRXFH;
    request[1] = flow as u32;
    // SAFETY: GRXFH reads and writes at most a `struct ethtool_rxnfc`, 192 bytes; `request` has 256. It
    // holds no pointer and, with no FLOW_RSS bit set, no rule array follows it.
    unsafe { ethtool(interface, &mut request) }?;
    let [a, b, c, d] = request[2].to_ne_bytes();
    let [e, f, g, h] = request[3].to_ne_bytes();
    Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
}

/// One `SIOCETHTOOL` call in the current network namespace.
///
/// # Safety
/// `data` starts with the command, and is as long as all that this command reads and writes.
unsafe fn ethtool(interface: &str, data: &mut [u32]) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    let mut name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    // The last byte stays NUL.
    if interface.is_empty() || interface.len() >= name.len() || interface.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{interface:?} is no interface name")));
    }
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data.as_mut_ptr().cast() } };
    // SAFETY: the descriptor is an open socket; SIOCETHTOOL takes a `struct ifreq`, NUL-terminated name
    // and `ifr_data`, which points to `data`, exclusively borrowed for the call and, by this
    // function's contract, as long as the command needs. The kernel keeps no pointer.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer laid out as linux/ethtool.h says: a table of 4, a key of 6 bytes.
    #[test]
    fn an_answer_is_taken_apart() {
        let mut answer = vec![ETHTOOL_GRSSH, 0, 4, 6, u32::from_ne_bytes([1, 1, 0, 0]), 0, 3, 2, 1, 0];
        answer.extend([u32::from_ne_bytes([9, 8, 7, 6]), u32::from_ne_bytes([5, 4, 0xff, 0xff])]);
        let expected = RssConfig {
            hash_function: 1,
            input_transform: 1,
            key: vec![9, 8, 7, 6, 5, 4],
            indirection: vec![3, 2, 1, 0],
        };
        assert_eq!(decode(&answer, 4, 6).unwrap(), expected);
        answer[6] = 1 << 16;
        assert_eq!(decode(&answer, 4, 6).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
