"""Workers: environments in processes of their own, which can hang, crash and be killed."""
