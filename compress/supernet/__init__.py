"""Many networks in one: subnets that share a net's weights, and the search for the best of them."""
