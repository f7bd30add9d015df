"""`diagnose`: what of this machine and this installation works, and how to mend the rest."""
