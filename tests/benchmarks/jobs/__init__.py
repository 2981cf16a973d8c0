"""The same job with a StepWorker, and with what is used for jobs in Python otherwise."""
