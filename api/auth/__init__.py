"""Who a request is from, and what that tenant may use."""
