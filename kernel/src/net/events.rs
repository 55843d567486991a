//! The stream of [`Event`]s, whether from the kernel or from the fake.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;

use super::Event;

/// What changes, as it changes. A [`Stream`] that ends only when its source is gone for good.
pub struct Events(Pin<Box<dyn Stream<Item = Event> + Send>>);

impl Events {
    pub(super) fn new(stream: impl Stream<Item = Event> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl Stream for Events {
    type Item = Event;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.as_mut().poll_next(context)
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}
