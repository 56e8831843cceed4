"""`python -m tests.torture`: commands killed, starved of room and run side by side lose nothing and repeat nothing."""
