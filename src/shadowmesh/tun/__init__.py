"""The device between the kernel's IP stack and the mesh: one interface, one file for each system."""
