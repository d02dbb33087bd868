"""What a build says of its kernels: their nodes, work, occupancy and the estimate of their time."""
