"""Nothing is shared between test files but what stands in modules they import by name."""
