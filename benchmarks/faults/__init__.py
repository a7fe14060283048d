"""The fault programme: real jobs in a real service whose processes, broker, database, disk and clock fail."""
