"""How reliable the project is: processes killed, disks filled, files damaged, agents that act long, many readers."""
