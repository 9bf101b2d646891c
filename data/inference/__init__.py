"""A finished tree as a value: what it is asked, and what it answers; free of any framework."""
