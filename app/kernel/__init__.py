"""The kernel's side: netlink, namespaces, sysctls, conntrack, bound ports. Knows the model, never the store."""
