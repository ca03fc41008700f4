//! Whether there is an echo, as far as is known.
//!
//! ```text
//!            NoEcho, or Silence for UNHEARD frames
//!  Unknown ────────────────────────────────────────▶ Absent
//!     │                                              │    ▲
//!     │ Echo                                    Echo │    │ NoEcho or Silence for GONE frames
//!     └─────────────────▶ Present ◀──────────────────┘    │
//!                            └────────────────────────────┘
//! ```

use crate::delay::Evidence;

/// Frames with sound from the loudspeaker and without an echo, after which the echo counts as gone: 5 s.
pub(crate) const GONE: usize = 62;
/// Frames in which sound was played and nothing was heard, after which an echo counts as absent: 1.2 s.
const UNHEARD: usize = 15;
/// In samples. Delays that differ by no more count as the same, because the filter makes up for it.
const TOLERANCE: usize = 192;
/// Sound passes if its power is at most so many times that of the sound before the loudspeaker's first words.
const LOUDER: f32 = 4.0;
/// The share of that power that counts a frame later.
const FADING: f32 = 0.95;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Presence {
    /// There was too little to tell.
    Unknown {
        /// The power of recent sound that cannot be an echo.
        before: f32,
        /// Whether the sound may be an echo, because it is louder than that.
        suspicious: bool,
    },
    /// There is no echo.
    Absent,
    /// There is an echo.
    Present {
        /// The delay that the last frame showed, in samples, unless it spoke against an echo.
        last: Option<usize>,
        /// Blocks of the loudspeaker's sound from which the filter has learned.
        learned: usize,
    },
}

impl Presence {
    /// Nothing was heard yet.
    pub const START: Self = Self::Unknown { before: 0.0, suspicious: false };

    /// Returns what is known after one more frame of the mean square `power`. `against` frames in a row, this one included, speak
    /// against an echo.
    pub fn after(self, evidence: Evidence, power: f32, against: usize) -> Self {
        use Evidence::{Echo, NoEcho, Nothing, Silence};
        match (self, evidence) {
            (Self::Unknown { .. }, NoEcho) => Self::Absent,
            (Self::Unknown { .. }, Silence) if against >= UNHEARD => Self::Absent,
            (Self::Unknown { .. } | Self::Absent, Echo(delay)) => Self::Present { last: Some(delay), learned: 0 },
            (Self::Unknown { before, .. }, Nothing) => {
                Self::Unknown { before: power.max(FADING * before), suspicious: false }
            }
            (Self::Unknown { before, .. }, _) => {
                Self::Unknown { before: FADING * before, suspicious: power > LOUDER * (FADING * before) }
            }
            (Self::Present { .. }, NoEcho | Silence) if against >= GONE => Self::Absent,
            (Self::Present { learned, .. }, NoEcho | Silence) => Self::Present { last: None, learned },
            (Self::Present { learned, .. }, Echo(delay)) => Self::Present { last: Some(delay), learned },
            (known, _) => known,
        }
    }

    /// Whether to follow an echo that is `delay` samples late, while sound is lined up with one that was `present` samples late.
    ///
    /// A first echo is followed at once, since a mistake costs little. A known delay is given up only for one that comes twice.
    pub fn follows(self, delay: usize, present: usize) -> bool {
        let same = |other: usize| other.abs_diff(delay) <= TOLERANCE;
        match self {
            Self::Unknown { .. } | Self::Absent => true,
            Self::Present { last, .. } => !same(present) && last.is_some_and(same),
        }
    }

    /// Whether there may be something to cancel.
    pub fn is_possible(self) -> bool {
        match self {
            Self::Unknown { suspicious, .. } => suspicious,
            Self::Absent => false,
            Self::Present { .. } => true,
        }
    }

    /// Whether there is an echo.
    pub fn is_certain(self) -> bool {
        matches!(self, Self::Present { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(mut presence: Presence, evidence: Evidence, frames: usize) -> Presence {
        for against in 1..=frames {
            presence = presence.after(evidence, 0.0, against);
        }
        presence
    }

    #[test]
    fn an_echo_is_there_at_once_and_gone_after_five_seconds() {
        let quiet = after(Presence::START, Evidence::Silence, UNHEARD - 1);
        assert_eq!(quiet, Presence::START);
        assert_eq!(after(Presence::START, Evidence::Silence, UNHEARD), Presence::Absent);
        assert_eq!(after(Presence::START, Evidence::NoEcho, 1), Presence::Absent);
        for before in [Presence::START, Presence::Absent] {
            let present = before.after(Evidence::Echo(700), 0.0, 0);
            assert_eq!(present, Presence::Present { last: Some(700), learned: 0 });
            assert_eq!(after(present, Evidence::Unclear, 1000), present);
            for evidence in [Evidence::Silence, Evidence::NoEcho] {
                let doubted = after(present, evidence, GONE - 1);
                assert_eq!(doubted, Presence::Present { last: None, learned: 0 });
                assert_eq!(doubted.after(evidence, 0.0, GONE), Presence::Absent);
            }
        }
    }

    #[test]
    fn another_delay_is_followed_when_it_comes_twice_in_a_row() {
        let present = Presence::Absent.after(Evidence::Echo(700), 0.0, 0);
        assert!(!present.follows(700 + TOLERANCE, 700));
        assert!(!present.follows(2000, 700));
        let again = present.after(Evidence::Echo(2000), 0.0, 0);
        assert!(again.follows(2000 + TOLERANCE, 700) && !again.follows(2001 + TOLERANCE, 700));
        assert!(!again.after(Evidence::Silence, 0.0, 1).follows(2000, 700));
    }

    #[test]
    fn what_is_louder_than_before_is_suspicious_until_more_is_known() {
        let heard = Presence::START.after(Evidence::Nothing, 0.01, 0);
        assert!(!heard.is_possible());
        assert!(!heard.after(Evidence::Unclear, 0.99 * LOUDER * FADING * 0.01, 0).is_possible());
        let suspicious = heard.after(Evidence::Unclear, 1.01 * LOUDER * FADING * 0.01, 0);
        assert!(suspicious.is_possible() && !suspicious.is_certain());
        assert!(!suspicious.after(Evidence::Nothing, 1.0, 0).is_possible());
        assert!(!suspicious.after(Evidence::NoEcho, 1.0, 1).is_possible());
    }
}
