"""The user's list: its columns and rows, the split by subject, and pseudonyms."""
