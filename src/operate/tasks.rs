//! Owns the tasks of a gateway: which must run as long as it does, and what it means when one does not.
//!
//! A gateway without its link, its clock or its acceptor is worse than none: it looks well and does nothing.
//! So a vital task that ends by itself ends the gateway, and whoever started that starts it again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A vital task has ended before it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskEnded {
    /// A mistake in the program; the log says where.
    #[error("the task {0:?} panicked; the log says where, and whoever maintains Texto would like to know")]
    Panicked(&'static str),
    /// It returned, or was thrown away.
    #[error("the task {0:?} ended by itself, which whoever maintains Texto would like to know")]
    Returned(&'static str),
}

/// The tasks of one gateway. A cheap handle.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
    first_ended: watch::Sender<Option<TaskEnded>>,
    running: Arc<Mutex<Vec<(&'static str, AbortHandle)>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
            first_ended: watch::Sender::new(None),
            running: Arc::default(),
        }
    }
}

impl Tasks {
    /// Cancelled when all tasks must end.
    pub fn end(&self) -> &CancellationToken {
        &self.end
    }

    /// Runs `task`, one of many; should it panic, the others don't mind.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Runs `task`, without which the gateway is of no use: it must not end before `until` is cancelled.
    pub fn spawn_vital(
        &self,
        name: &'static str,
        until: &CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let vital = Vital { name, until: until.clone(), first_ended: self.first_ended.clone() };
        let task = self.tracker.spawn(async move {
            let _vital = vital;
            task.await;
        });
        self.note(name, task.abort_handle());
    }

    /// The same for a `task` that goes on for ever: it is dropped when all tasks are to end.
    pub fn spawn_lasting(&self, name: &'static str, task: impl Future<Output: Send> + Send + 'static) {
        let end = self.end().clone();
        self.spawn_vital(name, self.end(), async move {
            end.run_until_cancelled(task).await;
        });
    }

    /// Waits for the first vital task that ends too early. Cancel safe.
    pub async fn ended(&self) -> TaskEnded {
        let mut ended = self.first_ended.subscribe();
        loop {
            if let Some(ended) = *ended.borrow_and_update() {
                return ended;
            }
            if ended.changed().await.is_err() {
                std::future::pending::<()>().await; // Not while `self` holds the sender.
            }
        }
    }

    /// Ends all tasks. Whether they did within `limit`.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.end.cancel();
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }

    /// Takes note of a task that whoever spawned it starts again.
    pub fn note(&self, name: &'static str, task: AbortHandle) {
        self.running().push((name, task));
    }

    /// The names of the tasks that run, but for the many.
    pub fn names(&self) -> Vec<&'static str> {
        self.running().iter().map(|(name, _)| *name).collect()
    }

    /// Ends the tasks called `name` as a mistake would, for tests of what follows.
    #[doc(hidden)]
    pub fn abort(&self, name: &str) {
        self.running().iter().filter(|(running, _)| *running == name).for_each(|(_, task)| task.abort());
    }

    fn running(&self) -> MutexGuard<'_, Vec<(&'static str, AbortHandle)>> {
        // Each change of the list is one call.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|(_, task)| !task.is_finished());
        running
    }
}

/// Goes wherever its task goes: also when that panics, or is dropped.
struct Vital {
    name: &'static str,
    until: CancellationToken,
    first_ended: watch::Sender<Option<TaskEnded>>,
}

impl Drop for Vital {
    fn drop(&mut self) {
        let ended = if std::thread::panicking() {
            TaskEnded::Panicked(self.name)
        } else if self.until.is_cancelled() {
            return;
        } else {
            TaskEnded::Returned(self.name)
        };
        self.first_ended.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(ended);
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const LIMIT: Duration = Duration::from_secs(5);

    /// What has ended once every task has had its turns: there is one thread.
    async fn first(tasks: &Tasks) -> Option<TaskEnded> {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        tasks.ended().now_or_never()
    }

    #[tokio::test]
    async fn a_vital_task_that_panics_returns_or_is_dropped_is_named() {
        let tasks = Tasks::default();
        let end = tasks.end().clone();
        tasks.spawn_vital("fine", &end, std::future::pending());
        tasks.spawn(async { panic!("one of many") });
        assert_eq!(first(&tasks).await, None);

        tasks.spawn_vital("bad", &end, async { panic!("on purpose") });
        assert_eq!(first(&tasks).await, Some(TaskEnded::Panicked("bad")));
        tasks.spawn_vital("worse", &end, async {});
        assert_eq!(first(&tasks).await, Some(TaskEnded::Panicked("bad")), "the first one counts");

        let tasks = Tasks::default();
        tasks.spawn_vital("short", tasks.end(), async {});
        assert_eq!(first(&tasks).await, Some(TaskEnded::Returned("short")));

        let tasks = Tasks::default();
        tasks.spawn_vital("dropped", tasks.end(), std::future::pending());
        tasks.abort("dropped");
        assert_eq!(first(&tasks).await, Some(TaskEnded::Returned("dropped")));
    }

    #[tokio::test]
    async fn a_task_that_was_told_to_end_may() {
        let tasks = Tasks::default();
        let until = tasks.end().child_token();
        let own = until.clone();
        tasks.spawn_vital("link", &until, async move { own.cancelled().await });
        let end = tasks.end().clone();
        tasks.spawn_vital("clock", tasks.end(), async move { end.cancelled().await });
        until.cancel();
        assert_eq!(first(&tasks).await, None);
        assert_eq!(tasks.names(), ["clock"]);
        assert!(tasks.finish(LIMIT).await);
        assert_eq!(first(&tasks).await, None);
        assert!(tasks.names().is_empty());
    }
}
