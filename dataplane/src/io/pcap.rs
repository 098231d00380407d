//! Capture files as ports: replay one as received packets, write what is transmitted, or copy what
//! passes another port. For tests and captures: writing a file is a system call now and then.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::{Burst, Frame, FramePool, LARGEST_PACKET, PacketMemory, Port, PortStats};

/// First bytes of a pcapng file: a section header block.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

const SNAPLEN: u32 = 65_535;

#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: packet {packet}: {source}; is it a whole pcap or pcapng file?", path.display())]
    Format { path: PathBuf, packet: usize, source: PcapError },
    #[error("{}: packets of link type {found:?}; only Ethernet can be replayed", path.display())]
    NotEthernet { path: PathBuf, found: DataLink },
}

/// The packets of a capture file, pcap or pcapng.
pub fn read(path: &Path) -> Result<Vec<Vec<u8>>, CaptureError> {
    let io = |source| CaptureError::Io { path: path.into(), source };
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    let mut magic = [0; 4];
    file.read_exact(&mut magic).map_err(io)?;
    file.rewind().map_err(io)?;
    let mut packets = Vec::new();
    let outcome = if magic == PCAPNG { read_pcapng(file, &mut packets) } else { read_pcap(file, &mut packets) };
    match outcome {
        Ok(()) => Ok(packets),
        Err(Fault::Link(found)) => Err(CaptureError::NotEthernet { path: path.into(), found }),
        Err(Fault::Format(source)) => {
            Err(CaptureError::Format { path: path.into(), packet: packets.len() + 1, source })
        }
    }
}

enum Fault {
    Link(DataLink),
    Format(PcapError),
}

impl From<PcapError> for Fault {
    fn from(error: PcapError) -> Self {
        Self::Format(error)
    }
}

fn read_pcap(file: impl Read, packets: &mut Vec<Vec<u8>>) -> Result<(), Fault> {
    let mut reader = PcapReader::new(file)?;
    ethernet(reader.header().datalink)?;
    while let Some(packet) = reader.next_packet() {
        packets.push(packet?.data.into_owned());
    }
    Ok(())
}

fn read_pcapng(file: impl Read, packets: &mut Vec<Vec<u8>>) -> Result<(), Fault> {
    let mut reader = PcapNgReader::new(file)?;
    while let Some(block) = reader.next_block() {
        match block? {
            Block::InterfaceDescription(interface) => ethernet(interface.linktype)?,
            Block::EnhancedPacket(packet) => packets.push(packet.data.into_owned()),
            Block::Packet(packet) => packets.push(packet.data.into_owned()),
            Block::SimplePacket(packet) => {
                // The block is padded to four bytes, and the reader leaves the padding.
                let mut bytes = packet.data.into_owned();
                bytes.truncate(packet.original_len as usize);
                packets.push(bytes);
            }
            _ => {}
        }
    }
    Ok(())
}

fn ethernet(link: DataLink) -> Result<(), Fault> {
    if link == DataLink::ETHERNET { Ok(()) } else { Err(Fault::Link(link)) }
}

/// Writes packets to a pcap file with nanosecond timestamps, up to a limit; then it is silent.
pub struct Capture<W: Write> {
    writer: Option<PcapWriter<W>>,
    now: Duration,
    left: u64,
    written: u64,
    failed: Option<PcapError>,
}

impl Capture<BufWriter<File>> {
    pub fn create(path: &Path, limit: u64) -> Result<Self, CaptureError> {
        let file = File::create(path).map_err(|source| CaptureError::Io { path: path.into(), source })?;
        Self::new(BufWriter::new(file), limit).map_err(|source| CaptureError::Format {
            path: path.into(),
            packet: 0,
            source,
        })
    }
}

impl<W: Write> Capture<W> {
    pub fn new(writer: W, limit: u64) -> Result<Self, PcapError> {
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let writer = Some(PcapWriter::with_header(writer, header)?);
        Ok(Self { writer, now: Duration::ZERO, left: limit, written: 0, failed: None })
    }

    /// The timestamp of packets from now on.
    pub fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The limit is reached, or writing failed.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.left == 0 || self.writer.is_none()
    }

    /// The writer, or why it failed.
    pub fn finish(self) -> Result<W, PcapError> {
        match (self.writer, self.failed) {
            (_, Some(error)) => Err(error),
            (Some(writer), None) => {
                let mut writer = writer.into_writer();
                writer.flush().map_err(PcapError::IoError)?;
                Ok(writer)
            }
            (None, None) => Err(PcapError::IncompleteBuffer),
        }
    }

    /// [`Self::packet`] of all the frames it is in.
    fn frame(&mut self, memory: &PacketMemory, frame: &Frame) {
        if frame.is_chain() {
            self.packet(CopyOf::new(memory, frame).as_slice());
        } else {
            self.packet(memory.bytes(frame));
        }
    }

    /// A full disk must not stop packets: the first failure ends the capture, and is told by `finish`.
    pub fn packet(&mut self, bytes: &[u8]) {
        let Some(writer) = self.writer.as_mut() else { return };
        if self.left == 0 {
            return;
        }
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match writer.write_packet(&PcapPacket::new(self.now, len, bytes)) {
            Ok(_) => {
                self.left -= 1;
                self.written += 1;
            }
            Err(error) => {
                self.failed = Some(error);
                self.writer = None;
            }
        }
    }
}

/// Replays packets as received, and captures what is transmitted.
pub struct PcapPort<W: Write = BufWriter<File>> {
    packets: Vec<Vec<u8>>,
    next: usize,
    capture: Option<Capture<W>>,
    sent: Vec<Frame>,
    too_large: u64,
}

impl PcapPort {
    /// Replays the file `input`, once; what is transmitted goes to the file `output`.
    pub fn open(input: &Path, output: Option<&Path>) -> Result<Self, CaptureError> {
        let packets = read(input)?;
        let capture = output.map(|path| Capture::create(path, u64::MAX)).transpose()?;
        Ok(Self::new(packets, capture))
    }
}

impl<W: Write> PcapPort<W> {
    #[must_use]
    pub fn new(packets: Vec<Vec<u8>>, capture: Option<Capture<W>>) -> Self {
        Self { packets, next: 0, capture, sent: Vec::new(), too_large: 0 }
    }

    /// All packets have been received.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.next == self.packets.len()
    }

    pub fn capture_mut(&mut self) -> Option<&mut Capture<W>> {
        self.capture.as_mut()
    }

    pub fn into_capture(self) -> Option<Capture<W>> {
        self.capture
    }
}

impl<W: Write> Port for PcapPort<W> {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        let before = out.len();
        while !out.is_full() && pool.free_count() > 0 {
            let Some(packet) = self.packets.get(self.next) else { break };
            self.next += 1;
            match pool.take_packet(packet) {
                Some(frame) => out.push(frame),
                None => self.too_large += 1,
            }
        }
        out.len() - before
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        let count = frames.len();
        if let Some(capture) = self.capture.as_mut() {
            frames.iter().for_each(|frame| capture.frame(pool.memory(), frame));
        }
        self.sent.extend(frames.drain(..));
        count
    }

    fn service(&mut self, pool: &mut FramePool) {
        self.sent.drain(..).for_each(|frame| pool.give(frame));
    }

    fn frames_held(&self) -> usize {
        self.sent.len()
    }

    fn stats(&self) -> PortStats {
        PortStats { rx_dropped: self.too_large, ..PortStats::default() }
    }
}

/// `inner`, with a copy of what passes, both ways, in a capture.
pub struct Tee<P, W: Write> {
    inner: P,
    capture: Capture<W>,
}

impl<P: Port, W: Write> Tee<P, W> {
    #[must_use]
    pub fn new(inner: P, capture: Capture<W>) -> Self {
        Self { inner, capture }
    }

    pub fn capture_mut(&mut self) -> &mut Capture<W> {
        &mut self.capture
    }

    #[must_use]
    pub fn into_parts(self) -> (P, Capture<W>) {
        (self.inner, self.capture)
    }
}

impl<P: Port, W: Write> Port for Tee<P, W> {
    fn rx_burst(&mut self, pool: &mut FramePool, out: &mut Burst) -> usize {
        let count = self.inner.rx_burst(pool, out);
        if !self.capture.is_finished() {
            let first = out.len() - count;
            out[first..].iter().for_each(|frame| self.capture.frame(pool.memory(), frame));
        }
        count
    }

    fn tx_burst(&mut self, pool: &mut FramePool, frames: &mut Burst) -> usize {
        if self.capture.is_finished() {
            return self.inner.tx_burst(pool, frames);
        }
        // Which frames the port takes shows only afterwards, when they are the port's. So it is offered
        // one at a time, and what it refuses was not captured.
        let mut taken = 0;
        while !frames.is_empty() {
            let mut one: Burst = frames.drain(..1).collect();
            let bytes = CopyOf::new(pool.memory(), &one[0]);
            let count = self.inner.tx_burst(pool, &mut one);
            if count == 0 {
                one.extend(frames.drain(..));
                *frames = one;
                break;
            }
            self.capture.packet(bytes.as_slice());
            taken += count;
        }
        taken
    }

    fn service(&mut self, pool: &mut FramePool) {
        self.inner.service(pool);
    }

    fn frames_held(&self) -> usize {
        self.inner.frames_held()
    }

    fn tx_pending(&self) -> bool {
        self.inner.tx_pending()
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.poll_fd()
    }

    fn stats(&self) -> PortStats {
        self.inner.stats()
    }
}

/// A packet's bytes on the stack: the frame is gone once the port has taken it.
struct CopyOf {
    bytes: [u8; LARGEST_PACKET],
    len: usize,
}

impl CopyOf {
    fn new(memory: &PacketMemory, frame: &Frame) -> Self {
        let mut bytes = [0; LARGEST_PACKET];
        let len = memory.copy_out(frame, &mut bytes);
        Self { bytes, len }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use pcap_file::pcapng::blocks::simple_packet::SimplePacketBlock;
    use proptest::prelude::*;

    use super::*;
    use crate::io::mem::pair;

    fn pool() -> FramePool {
        FramePool::new(PacketMemory::heap(128, 2048, 256))
    }

    /// Receives and transmits all there is.
    fn loop_back<W: Write>(port: &mut PcapPort<W>, pool: &mut FramePool) {
        while !port.is_at_end() {
            let mut burst = Burst::new();
            port.rx_burst(pool, &mut burst);
            pool.assert_conserved(port.frames_held(), burst.len());
            port.tx_burst(pool, &mut burst);
            pool.assert_conserved(port.frames_held(), burst.len());
            port.service(pool);
        }
        pool.assert_conserved(0, 0);
    }

    #[test]
    fn a_file_is_replayed_into_another() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one.pcap"), dir.path().join("two.pcap"));
        let packets: Vec<Vec<u8>> = (14..200_u8).map(|len| vec![len; usize::from(len)]).collect();
        let mut capture = Capture::create(&one, u64::MAX).unwrap();
        packets.iter().for_each(|packet| capture.packet(packet));
        capture.finish().unwrap();

        let mut port = PcapPort::open(&one, Some(&two)).unwrap();
        loop_back(&mut port, &mut pool());
        port.into_capture().unwrap().finish().unwrap();
        assert_eq!(read(&two).unwrap(), packets);
    }

    #[test]
    fn pcapng_is_read_too_without_its_padding() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.pcapng");
        let mut writer = PcapNgWriter::new(File::create(&path).unwrap()).unwrap();
        writer
            .write_pcapng_block(InterfaceDescriptionBlock { linktype: DataLink::ETHERNET, snaplen: 0, options: vec![] })
            .unwrap();
        let enhanced = EnhancedPacketBlock {
            interface_id: 0,
            timestamp: Duration::ZERO,
            original_len: 15,
            data: vec![1; 15].into(),
            options: vec![],
        };
        writer.write_pcapng_block(enhanced).unwrap();
        writer.write_pcapng_block(SimplePacketBlock { original_len: 17, data: vec![2; 17].into() }).unwrap();
        drop(writer);
        assert_eq!(read(&path).unwrap(), [vec![1; 15], vec![2; 17]]);
    }

    #[test]
    fn faults_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        assert!(matches!(read(&path), Err(CaptureError::Io { .. })));
        std::fs::write(&path, b"not a capture file at all, but long enough for a header").unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.to_string().contains("x.pcap: packet 1:"), "{error}");
        let header = PcapHeader { datalink: DataLink::RAW, ..PcapHeader::default() };
        drop(PcapWriter::with_header(File::create(&path).unwrap(), header).unwrap());
        assert!(matches!(read(&path), Err(CaptureError::NotEthernet { .. })));
    }

    #[test]
    fn packets_larger_than_a_frame_are_replayed_and_captured_whole() {
        let packets: Vec<Vec<u8>> = [1793, 60, 9018].map(|len| (0..len).map(|at| at as u8).collect()).into();
        let mut port = PcapPort::new(packets.clone(), Some(Capture::new(Vec::new(), 100).unwrap()));
        loop_back(&mut port, &mut pool());
        let file = port.into_capture().unwrap().finish().unwrap();
        let mut captured = Vec::new();
        assert!(read_pcap(file.as_slice(), &mut captured).is_ok());
        assert!(captured == packets);
        // In more frames than a packet may have.
        let mut port = PcapPort::<Vec<u8>>::new(vec![vec![0; 40_000], vec![0; 60]], None);
        loop_back(&mut port, &mut pool());
        assert_eq!(port.stats().rx_dropped, 1);
    }

    #[test]
    fn a_tee_captures_chains_whole() {
        let (port, peer) = pair(3);
        let mut port = Tee::new(port.chaining(100), Capture::new(Vec::new(), 100).unwrap());
        let mut pool = pool();
        let mut burst = Burst::new();
        let packet: Vec<u8> = (0..4000).map(|at| (at / 16) as u8).collect();
        peer.inject(&packet);
        port.rx_burst(&mut pool, &mut burst);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 1);
        port.service(&mut pool);
        pool.assert_conserved(0, 0);
        assert!(peer.take().unwrap() == packet);
        let mut captured = Vec::new();
        assert!(read_pcap(port.into_parts().1.finish().unwrap().as_slice(), &mut captured).is_ok());
        assert!(captured == [packet.clone(), packet]);
    }

    #[test]
    fn a_tee_captures_what_passed_both_ways_and_no_more() {
        let (port, peer) = pair(3);
        let mut port = Tee::new(port, Capture::new(Vec::new(), 100).unwrap());
        let mut pool = pool();
        let mut burst = Burst::new();
        peer.inject(b"in");
        port.rx_burst(&mut pool, &mut burst);
        for name in ["a", "b", "c"] {
            burst.push(pool.take_with(name.as_bytes()).unwrap());
        }
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 3, "the ring holds three");
        assert_eq!(burst.len(), 1);
        pool.assert_conserved(port.frames_held(), burst.len());
        assert_eq!(peer.take_all(), [b"in".to_vec(), b"a".to_vec(), b"b".to_vec()]);
        let (_, capture) = port.into_parts();
        assert_eq!(capture.written(), 4);
        let mut reader = PcapReader::new(&*Box::leak(capture.finish().unwrap().into_boxed_slice())).unwrap();
        let captured: Vec<_> =
            std::iter::from_fn(|| reader.next_packet().map(|p| p.unwrap().data.into_owned())).collect();
        assert_eq!(captured, [b"in".to_vec(), b"in".to_vec(), b"a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn a_tee_stops_at_its_limit_and_on_a_full_disk() {
        let (port, peer) = pair(16);
        let mut port = Tee::new(port, Capture::new(Vec::new(), 2).unwrap());
        let mut pool = pool();
        let mut burst = Burst::new();
        (0..5).for_each(|n| assert!(peer.inject(&[n])));
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 5);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 5);
        assert_eq!(port.into_parts().1.written(), 2);

        /// Room for the file's header.
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let (port, peer) = pair(16);
        let mut port = Tee::new(port, Capture::new(Full(30), u64::MAX).unwrap());
        peer.inject(&[1; 60]);
        assert_eq!(port.rx_burst(&mut pool, &mut burst), 1);
        assert_eq!(port.tx_burst(&mut pool, &mut burst), 1, "packets pass all the same");
        assert!(port.capture_mut().is_finished());
        assert!(port.into_parts().1.finish().is_err());
    }

    proptest! {
        #[test]
        fn any_packets_survive_file_and_port(
            packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1792), 0..200),
        ) {
            let mut pool = pool();
            let mut port = PcapPort::new(packets.clone(), Some(Capture::new(Vec::new(), u64::MAX).unwrap()));
            loop_back(&mut port, &mut pool);
            let file = port.into_capture().unwrap().finish().unwrap();
            let mut again = Vec::new();
            prop_assert!(read_pcap(file.as_slice(), &mut again).is_ok());
            prop_assert_eq!(again, packets);
        }
    }
}
