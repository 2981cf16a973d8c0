"""The parts of the embedded broker; `processor.broker` is its door."""
