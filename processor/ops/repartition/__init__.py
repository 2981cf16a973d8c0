"""Rewrite N partitions as M: read the old side in the order of decision, write the new one."""
