//! A byte stream both ends can compute, and the hash that compares what came with what was sent.

use std::hash::Hasher;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};

/// Bytes handed over at a time: large enough that the cost is the network's, not the generator's.
const CHUNK: usize = 64 * 1024;

/// `length` pseudo-random bytes, the same for every caller.
#[derive(Debug, Clone)]
pub struct Pattern {
    state: u64,
    remaining: u64,
}

impl Pattern {
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self { state: 0x7065_6e73_746f_636b, remaining: length }
    }

    /// The next bytes; empty at the end.
    pub fn chunk(&mut self) -> Bytes {
        let length = usize::try_from(self.remaining).unwrap_or(CHUNK).min(CHUNK);
        let mut bytes = vec![0_u8; length];
        for word in bytes.chunks_mut(8) {
            // SplitMix64 (Steele, Lea, Flood 2014): one multiplication chain, no period to notice.
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = self.state;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes()[..word.len()]);
        }
        self.remaining -= length as u64;
        bytes.into()
    }

    /// The digest of all `length` bytes.
    #[must_use]
    pub fn digest(length: u64) -> u64 {
        let mut pattern = Self::new(length);
        let mut digest = Digest::default();
        while pattern.remaining > 0 {
            digest.update(&pattern.chunk());
        }
        digest.value()
    }
}

/// As an HTTP body: of an answer to `/bytes/N`, of an upload.
impl Body for Pattern {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(self.chunk()))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

/// 64-bit SipHash: not cryptographic, but no lost, doubled or swapped segment gets past it.
#[derive(Debug, Default)]
pub struct Digest(std::hash::DefaultHasher, u64);

impl Digest {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
        self.1 += bytes.len() as u64;
    }

    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.finish()
    }

    /// Bytes so far.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.1
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Pattern};

    #[test]
    fn the_digest_does_not_depend_on_how_the_bytes_were_cut() {
        let mut pattern = Pattern::new(100_003);
        let mut all = Vec::new();
        while all.len() < 100_003 {
            all.extend_from_slice(&pattern.chunk());
        }
        let mut odd = Digest::default();
        all.chunks(1009).for_each(|part| odd.update(part));
        assert_eq!(odd.value(), Pattern::digest(100_003));
        assert_eq!(odd.length(), 100_003);
    }

    #[test]
    fn one_changed_byte_changes_the_digest() {
        let mut bytes = Pattern::new(4096).chunk().to_vec();
        bytes[1234] ^= 1;
        let mut digest = Digest::default();
        digest.update(&bytes);
        assert_ne!(digest.value(), Pattern::digest(4096));
    }
}
