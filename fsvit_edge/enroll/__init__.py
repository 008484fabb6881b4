"""From a user's pictures to a class in the bank, and what to say about it."""
