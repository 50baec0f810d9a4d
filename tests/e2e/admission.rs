//! What a broker refuses, with which code, and that refusing changes nothing.
