"""The parts of the embedded broker; `processor.embedded.broker` is its door."""
