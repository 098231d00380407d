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
mod tests;
