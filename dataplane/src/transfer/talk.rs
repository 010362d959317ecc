//! Words between the programs of two nodes: each is heard once and in order, whatever becomes of connections.
//!
//! A word is cut into numbered pieces. They are kept until acknowledged and said again, all of them, on the next
//! connection (go back N): connections break rarely, and within one of them nothing is lost or overtaken.

use dflow_proto::Tick;
use dflow_proto::wire::Malformed;
use dflow_proto::wire::notice::{Notice, SAY_BYTES_MAX};
use std::collections::VecDeque;

/// The longest word. Bytes.
pub const WORD_BYTES_MAX: usize = 72 << 20;
/// Bytes that one peer may leave unacknowledged.
const UNACKED_BYTES_MAX: usize = 96 << 20;
/// So many pieces are acknowledged at once,
const ACK_PIECES: u64 = 32;
/// or after so long. Milliseconds.
const ACK_MS: u64 = 50;

/// The peer has not acknowledged what it was told for too long: it must be taken for lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{unacked_bytes} bytes of words are not acknowledged, {UNACKED_BYTES_MAX} may be")]
pub struct Unheard {
    /// How many.
    pub unacked_bytes: usize,
}

/// One peer's side of the talk.
#[derive(Debug, Default)]
pub(super) struct Talk {
    /// Pieces said so far.
    said: u64,
    unacked: VecDeque<(u64, bool, Vec<u8>)>,
    unacked_bytes: usize,
    /// The last piece heard.
    heard: u64,
    /// The last piece that the peer knows we have heard.
    acked: u64,
    ack_at: Option<Tick>,
    partial: Vec<u8>,
}

impl Talk {
    /// Notices that say `word`.
    pub(super) fn say(&mut self, word: &[u8]) -> Result<Vec<Notice>, Unheard> {
        if self.unacked_bytes + word.len() > UNACKED_BYTES_MAX || word.len() > WORD_BYTES_MAX {
            return Err(Unheard { unacked_bytes: self.unacked_bytes });
        }
        let pieces = word.len().div_ceil(SAY_BYTES_MAX).max(1);
        let mut notices = Vec::with_capacity(pieces);
        for index in 0..pieces {
            let end = word.len().min((index + 1) * SAY_BYTES_MAX);
            let bytes = word[index * SAY_BYTES_MAX..end].to_vec();
            let last = index + 1 == pieces;
            self.said += 1;
            self.unacked_bytes += bytes.len();
            self.unacked.push_back((self.said, last, bytes.clone()));
            notices.push(Notice::Say { seq: self.said, ack: self.heard, last, bytes });
        }
        self.acknowledged();
        Ok(notices)
    }

    /// All that may not have been heard, for a new connection.
    pub(super) fn again(&mut self) -> Vec<Notice> {
        self.acknowledged();
        let ack = self.heard;
        let notice = |(seq, last, bytes): &(u64, bool, Vec<u8>)| {
            let (seq, last, bytes) = (*seq, *last, bytes.clone());
            Notice::Say { seq, ack, last, bytes }
        };
        self.unacked.iter().map(notice).collect()
    }

    /// A piece came; the word, if it is complete.
    pub(super) fn hear(
        &mut self,
        now: Tick,
        seq: u64,
        ack: u64,
        last: bool,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, Malformed> {
        if ack > self.said {
            return Err(Malformed::Inconsistent { what: "acknowledgement" });
        }
        while self.unacked.front().is_some_and(|(seq, ..)| *seq <= ack) {
            if let Some((_, _, bytes)) = self.unacked.pop_front() {
                self.unacked_bytes -= bytes.len();
            }
        }
        // What was heard before, or comes ahead of what a broken connection swallowed.
        if seq != self.heard + 1 {
            return Ok(None);
        }
        self.heard = seq;
        self.ack_at.get_or_insert(now.after_ms(ACK_MS));
        if self.heard - self.acked >= ACK_PIECES {
            self.ack_at = Some(now);
        }
        if self.partial.len() + bytes.len() > WORD_BYTES_MAX {
            let have = (self.partial.len() + bytes.len()) as u64;
            return Err(Malformed::TooLong { what: "word", have, max: WORD_BYTES_MAX as u64 });
        }
        self.partial.extend_from_slice(bytes);
        Ok(last.then(|| std::mem::take(&mut self.partial)))
    }

    /// When the peer is to be told what was heard of it, if nothing else is said before.
    pub(super) const fn ack_at(&self) -> Option<Tick> {
        self.ack_at
    }

    /// The acknowledgement that is due.
    pub(super) fn ack(&mut self, now: Tick) -> Option<Notice> {
        self.ack_at.filter(|at| *at <= now)?;
        self.acknowledged();
        Some(Notice::Say { seq: 0, ack: self.heard, last: true, bytes: Vec::new() })
    }

    fn acknowledged(&mut self) {
        self.acked = self.heard;
        self.ack_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deliver(to: &mut Talk, notices: Vec<Notice>) -> Vec<Vec<u8>> {
        let mut words = Vec::new();
        for notice in notices {
            let Notice::Say { seq, ack, last, bytes } = notice else { unreachable!("a talk only says") };
            words.extend(to.hear(Tick(0), seq, ack, last, &bytes).expect("well-formed"));
        }
        words
    }

    #[test]
    fn words_survive_a_broken_connection_once_and_in_order() {
        let (mut a, mut b) = (Talk::default(), Talk::default());
        assert_eq!(deliver(&mut b, a.say(b"one").expect("room")), [b"one"]);
        let long = vec![7; SAY_BYTES_MAX * 2 + 5];
        let mut lost = a.say(&long).expect("room");
        lost.truncate(1);
        assert!(deliver(&mut b, lost).is_empty(), "only the first piece came");
        // What still waited for the connection comes ahead of what is said again.
        let ahead = a.say(b"three").expect("room");
        assert!(deliver(&mut b, ahead).is_empty());
        assert_eq!(deliver(&mut b, a.again()), [long, b"three".to_vec()]);
        assert!(deliver(&mut b, a.again()).is_empty(), "heard already");
        assert!(b.ack(Tick(0)).is_none(), "acknowledgements wait a moment for company");
        let ack = b.ack(Tick(0).after_ms(ACK_MS)).expect("due");
        deliver(&mut a, vec![ack]);
        assert!(a.again().is_empty() && a.unacked_bytes == 0);
    }

    #[test]
    fn an_empty_word_is_a_word_and_nonsense_is_refused() {
        let (mut a, mut b) = (Talk::default(), Talk::default());
        assert_eq!(deliver(&mut b, a.say(b"").expect("room")), [b""]);
        assert!(a.hear(Tick(0), 0, 9, true, b"").is_err(), "acknowledges what was not said");
        assert!(a.say(&vec![0; WORD_BYTES_MAX + 1]).is_err());
    }
}
