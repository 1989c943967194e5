"""From dumps, books and sentences to pre-training instances on disk, in constant memory."""
