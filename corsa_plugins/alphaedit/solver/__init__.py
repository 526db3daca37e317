"""The closed form: the update of Eq. 8, in dual and primal form, and the null space it lies in."""
