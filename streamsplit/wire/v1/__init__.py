"""Generated from proto/streamsplit/v1/streamsplit.proto by `make proto`; do not edit."""
