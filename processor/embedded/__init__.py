"""The embedded broker's parts; `processor.embedded.broker` starts it."""
