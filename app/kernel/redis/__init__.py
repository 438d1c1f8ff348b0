"""The gateway to Redis, alone or as a cluster, and the channel between the processes of the program."""
