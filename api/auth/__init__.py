"""Authentication of callers, and limits and usage of their tenants."""
