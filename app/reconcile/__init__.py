"""The one writer: plans, applies, commits, answers; and brings the kernel back to the database."""
