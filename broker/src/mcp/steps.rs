//! What comes of one call and waits for whoever made it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agent_sdk::mcp::gateway::Step;
use tokio::sync::mpsc;

/// Steps that wait, and bytes of the envelopes that brought them; progress beyond is dropped, an answer never.
const STEPS_MAX: usize = 256;
const STEPS_BYTES_MAX: usize = 1 << 20;

/// Where the steps of a call come in.
#[derive(Debug, Clone)]
pub(super) struct Steps {
    steps: mpsc::Sender<(Step, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// Where they wait.
#[derive(Debug)]
pub(super) struct Waiting {
    steps: mpsc::Receiver<(Step, usize)>,
    bytes: Arc<AtomicUsize>,
}

/// Of one call.
pub(super) fn steps() -> (Steps, Waiting) {
    let (sender, receiver) = mpsc::channel(STEPS_MAX);
    let bytes = Arc::<AtomicUsize>::default();
    let steps = Steps {
        steps: sender,
        bytes: Arc::clone(&bytes),
    };
    let waiting = Waiting {
        steps: receiver,
        bytes,
    };
    (steps, waiting)
}

impl Steps {
    /// Has a step wait which came in an envelope of so many bytes.
    pub(super) fn put(&self, step: Step, bytes: usize) {
        // One place is always left for the answer.
        let is_last = matches!(step, Step::Answer(_));
        let has_room = || {
            let waiting = self.bytes.load(Ordering::Relaxed);
            self.steps.capacity() > 1 && waiting + bytes <= STEPS_BYTES_MAX
        };
        if is_last || has_room() {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            // Where nobody waits any more nothing is kept.
            let _ = self.steps.try_send((step, bytes));
        }
    }
}

impl Waiting {
    /// What comes next; nothing where nothing will.
    pub(super) async fn next(&mut self) -> Option<Step> {
        let (step, bytes) = self.steps.recv().await?;
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use agent_sdk::Progress;
    use serde_json::value::RawValue;

    use super::*;

    fn progress() -> Step {
        Step::Progress(Progress::default())
    }

    async fn waiting(bytes: usize) -> usize {
        let (steps, mut waiting) = steps();
        for _ in 0..2 * STEPS_MAX {
            steps.put(progress(), bytes);
        }
        steps.put(Step::Answer(Ok(RawValue::NULL.to_owned())), STEPS_BYTES_MAX);
        drop(steps);
        let mut seen = 0;
        while let Some(Step::Progress(_)) = waiting.next().await {
            seen += 1;
        }
        seen
    }

    #[tokio::test]
    async fn progress_waits_within_its_bounds_and_the_answer_always() {
        assert_eq!(waiting(1).await, STEPS_MAX - 1);
        assert_eq!(waiting(STEPS_BYTES_MAX / 4).await, 4);
        assert_eq!(waiting(STEPS_BYTES_MAX + 1).await, 0);
    }

    #[tokio::test]
    async fn what_was_looked_at_makes_room() {
        let (steps, mut waiting) = steps();
        for _ in 0..9 {
            steps.put(progress(), STEPS_BYTES_MAX);
            assert!(matches!(waiting.next().await, Some(Step::Progress(_))));
        }
    }
}
