"""One test file per connector type, and the suite that all of them must pass (`conformance`)."""
