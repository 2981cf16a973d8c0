"""From N partitions to M: the old side read in the order of decision, the new one written anew."""
