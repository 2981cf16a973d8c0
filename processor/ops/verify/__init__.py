"""Check the contract from the topics and tables, sharing no rule with the processor."""
