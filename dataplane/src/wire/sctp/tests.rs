//! Public vectors first, then the delta held against recomputation, then chunks as peers may send them.

use proptest::prelude::*;

use super::*;

/// Of a packet that is all at hand.
fn check(packet: &[u8]) -> Result<u8, DropReason> {
    super::check(packet, packet.len())
}

#[test]
fn rfc_3720_appendix_b_4() {
    let ascending: Vec<u8> = (0..32).collect();
    let descending: Vec<u8> = (0..32).rev().collect();
    let read_command: [u8; 48] = [
        0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0, 0, 0,
        0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
    ];
    for (what, message, bytes) in [
        ("32 bytes of zeroes", &[0; 32][..], [0xaa, 0x36, 0x91, 0x8a]),
        ("32 bytes of ones", &[0xff; 32], [0x43, 0xab, 0xa8, 0x62]),
        ("32 bytes incrementing", &ascending, [0x4e, 0x79, 0xdd, 0x46]),
        ("32 bytes decrementing", &descending, [0x5c, 0xdb, 0x3f, 0x11]),
        ("an iSCSI read command", &read_command, [0x56, 0x3a, 0x96, 0xd9]),
    ] {
        assert_eq!(crc32c(&[message]).to_le_bytes(), bytes, "{what}");
    }
    // The check value of CRC-32C in every catalogue.
    assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
}

#[test]
fn rfc_9260_appendix_a_table() {
    // CRC of one byte from register 0 is the table's entry: the first three and the last of the RFC's.
    for (byte, entry) in [(0_u8, 0), (1, 0xf26b_8303), (2, 0xe13b_70f7), (255, 0xad7d_5351)] {
        // Removing the register's start and the final complement, both linear.
        assert_eq!(crc32c(&[&[byte]]) ^ crc32c(&[&[0]]), entry, "{byte}");
        assert_eq!(shift(u32::from(byte), 1), entry, "{byte}");
    }
}

fn packet(tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x0f, 0xa0, 0x0b, 0x84];
    bytes.extend(tag.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(chunks);
    let sum = right_checksum(&bytes);
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

fn chunk(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let [a, b] = (4 + body.len() as u16).to_be_bytes();
    let mut bytes = [&[kind, flags, a, b], body].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn init(kind: u8, tag: u32) -> Vec<u8> {
    chunk(kind, 0, &[&tag.to_be_bytes()[..], &[0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 1]].concat())
}

proptest! {
    #[test]
    fn delta_equals_recomputing(mut bytes in prop::collection::vec(any::<u8>(), 12..9200), ports: [u8; 4], noise: [u8; 4]) {
        // Whatever error the packet came with, it leaves with.
        let right = right_checksum(&bytes);
        let came: [u8; 4] = std::array::from_fn(|at| right[at] ^ noise[at]);
        prop_assume!(came != [0; 4]);
        bytes[8..12].copy_from_slice(&came);
        let len = bytes.len();
        set_ports(&mut bytes, 0, len, ports);
        prop_assert_eq!(&bytes[..4], &ports);
        let right = right_checksum(&bytes);
        let left: [u8; 4] = std::array::from_fn(|at| right[at] ^ noise[at]);
        prop_assert_eq!(&bytes[8..12], &left);
    }

    #[test]
    fn a_change_anywhere(mut bytes in prop::collection::vec(any::<u8>(), 16..2000), new: [u8; 4], at in 0_usize..2000) {
        let at = 12 + at % (bytes.len() - 15);
        let before = right_checksum(&bytes);
        let old: [u8; 4] = bytes_at(&bytes, at);
        put(&mut bytes, at, new);
        prop_assert_eq!(mend(before, old, new, bytes.len() - at), right_checksum(&bytes));
    }

    /// The first fragment translated alone, then told how much follows.
    #[test]
    fn a_first_fragment(bytes in prop::collection::vec(any::<u8>(), 24..9000), cut in 12_usize..9000, ports: [u8; 4]) {
        let cut = cut.min(bytes.len());
        let mut whole = bytes;
        let sum = right_checksum(&whole);
        whole[8..12].copy_from_slice(&sum);
        prop_assume!(sum != [0; 4]);
        let mut first = whole[..cut].to_vec();
        set_ports(&mut first, 0, cut, ports);
        lengthen(&mut first, 0, sum, whole.len() - cut);
        let len = whole.len();
        set_ports(&mut whole, 0, len, ports);
        prop_assert_eq!(&first[..], &whole[..cut]);
        prop_assert_eq!(bytes_at::<4>(&whole, 8), right_checksum(&whole));
    }

    #[test]
    fn any_chunks_are_read_safely(tag: u32, chunks in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = packet(tag, &chunks);
        let _ = check(&bytes);
        prop_assert_eq!(read(&bytes).tag, tag);
    }
}

#[test]
fn every_length_an_ip_packet_can_have() {
    let mut power = 1 << 31;
    for bytes in 0..=usize::from(u16::MAX) {
        assert_eq!(shift(1 << 31, bytes), power, "{bytes}");
        power = (0..8).fold(power, |power: u32, _| power >> 1 ^ GENERATOR & (power & 1).wrapping_neg());
    }
}

#[test]
fn a_zero_checksum_stays_zero() {
    let mut bytes = packet(7, &chunk(DATA, 3, b"0123456789abdata"));
    bytes[8..12].fill(0);
    set_ports(&mut bytes, 0, 32, [1, 2, 3, 4]);
    assert_eq!(bytes[..12], [1, 2, 3, 4, 0, 0, 0, 7, 0, 0, 0, 0]);
}

#[test]
fn chunks_are_seen_up_to_the_data() {
    let bundle =
        [chunk(COOKIE_ECHO, 0, b"cookie"), chunk(9, 0, b"err"), chunk(DATA, 3, &[0; 13]), chunk(ABORT, 1, &[])]
            .concat();
    let seen = read(&packet(5, &bundle));
    assert!(seen.has(COOKIE_ECHO) && seen.has(DATA) && seen.has(9));
    assert!(!seen.has(ABORT) && !seen.reflected, "an ABORT behind data is none (RFC 9260 section 3.3.7)");
    let seen = read(&packet(5, &[chunk(9, 0, b"why"), chunk(ABORT, 1, &[])].concat()));
    assert!(seen.has(ABORT) && seen.reflected);
    // Types beyond 15 are nobody's bit.
    assert!(!read(&packet(5, &chunk(0xc1, 0, &[0; 8]))).has(INIT));
    let many = chunk(4, 0, &[]).repeat(MAX_CHUNKS);
    assert!(!read(&packet(5, &[many, chunk(ABORT, 0, &[])].concat())).has(ABORT), "the walk is bounded");
    assert!(!read(&packet(5, &[chunk(I_DATA, 3, &[0; 17]), chunk(ABORT, 0, &[])].concat())).has(ABORT), "RFC 8260");
    assert!(!read(&packet(5, &chunk(ABORT, 2, &[]))).reflected, "another flag");
}

#[test]
fn what_is_malformed_is_refused() {
    let bad = Err(DropReason::BadSctpChunk);
    let data = || chunk(DATA, 3, &[0; 13]);
    assert_eq!(check(&packet(0, &init(INIT, 9))), Ok(OPENS));
    assert_eq!(check(&packet(3, &init(INIT_ACK, 9))), Ok(0));
    assert_eq!(check(&packet(3, &data())), Ok(0));
    assert_eq!(check(&packet(3, &chunk(I_DATA, 3, &[0; 17]))), Ok(0));
    for (what, result) in [
        ("an INIT with a tag", check(&packet(3, &init(INIT, 9)))),
        ("an INIT with no tag to give", check(&packet(0, &init(INIT, 0)))),
        ("an INIT ACK with no tag to give", check(&packet(3, &init(INIT_ACK, 0)))),
        ("an INIT in company", check(&packet(0, &[init(INIT, 9), data()].concat()))),
        ("an INIT behind another chunk", check(&packet(0, &[chunk(9, 0, &[]), init(INIT, 9)].concat()))),
        ("a short INIT", check(&packet(0, &chunk(INIT, 0, &[1; 15])))),
        ("data without a tag", check(&packet(0, &data()))),
        ("a chunk longer than the packet", check(&packet(3, &[3, 0, 0, 9, 0, 0, 0, 0]))),
        ("a chunk shorter than its header", check(&packet(3, &[3, 0, 0, 3]))),
        ("no chunk", check(&packet(3, &[]))),
        ("half a chunk header", check(&packet(3, &[0, 0, 0]))),
    ] {
        assert_eq!(result, bad, "{what}");
    }
    assert_eq!(check(&packet(3, &[])[..11]), Err(DropReason::TruncatedTransport));
    for port in [0..2, 2..4] {
        let mut zero = packet(3, &data());
        zero[port].fill(0);
        assert_eq!(check(&zero), Err(DropReason::PortZero));
    }
}

/// A packet in several frames: what is not in the first may be there all the same, but not be read.
#[test]
fn what_is_cut_by_the_end_of_a_frame_is_told_from_what_is_missing() {
    let split = Err(DropReason::HeadersSplit);
    let bundle = packet(3, &[chunk(COOKIE_ECHO, 0, &[7; 20]), chunk(DATA, 3, &[0; 13])].concat());
    let cut = |at: usize| super::check(&bundle[..at], bundle.len());
    assert_eq!((cut(11), cut(12), cut(15), cut(16), cut(35)), (split, split, split, split, split));
    assert_eq!(cut(40), Ok(0), "the data may be elsewhere");
    assert_eq!(super::check(&bundle[..11], 12), split);
    let alone = packet(3, &chunk(COOKIE_ECHO, 0, &[7; 20]));
    assert_eq!(super::check(&alone[..20], alone.len()), split, "what it says counts");
}

#[test]
fn addresses_are_hidden_as_far_as_they_are_there() {
    let of = |parameters: &[u8]| packet(0, &chunk(INIT, 0, &[&[1; 16], parameters].concat()));
    // A parameter shorter than its header ends the list.
    let mut short = of(&[0, 5, 0, 3, 0, 5, 0, 8, 1, 2, 3, 4]);
    let before = short.clone();
    hide_addresses(&mut short);
    assert_eq!(short, before);
    // No checksum stays none (RFC 9653).
    let mut zero = of(&[0, 5, 0, 8, 1, 2, 3, 4]);
    zero[CHECKSUM_AT..HEADER].fill(0);
    hide_addresses(&mut zero);
    assert_eq!((be16(&zero, 32), checksum(&zero, 0)), (PADDING, [0; 4]));
}

proptest! {
    /// Whatever stands behind an INIT: only types of addresses change, and the checksum stays as right or wrong as it was.
    #[test]
    fn hiding_addresses_changes_nothing_else(behind in prop::collection::vec(any::<u8>(), 0..300), types in prop::collection::vec(0_u8..9, 0..20), noise: [u8; 4]) {
        let parameters: Vec<u8> = types.iter().flat_map(|kind| chunk(0, *kind, &[*kind; 7])).collect();
        let mut bytes = packet(0, &chunk(INIT, 0, &[&[1; 16][..], &parameters, &behind].concat()));
        let right = right_checksum(&bytes);
        let came: [u8; 4] = std::array::from_fn(|at| right[at] ^ noise[at]);
        prop_assume!(came != [0; 4]);
        bytes[8..12].copy_from_slice(&came);
        let before = bytes.clone();
        hide_addresses(&mut bytes);
        let right = right_checksum(&bytes);
        let left: [u8; 4] = std::array::from_fn(|at| right[at] ^ noise[at]);
        prop_assert_eq!(&bytes[8..12], &left);
        for (at, (new, old)) in bytes.iter().zip(&before).enumerate().skip(12) {
            prop_assert!(new == old || (*new, *old) == (0x80, 0) || (*new, *old) == (5, 6), "byte {}", at);
        }
        for (at, kind) in types.iter().enumerate() {
            let wanted = if matches!(kind, 5 | 6) { PADDING } else { u16::from(*kind) };
            prop_assert_eq!(be16(&bytes, 32 + 12 * at), wanted);
        }
    }
}
