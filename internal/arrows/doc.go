// Package arrows holds the tests that keep the tree's rules: which package may
// import which, that every package says what it is, formatting, and what the
// files on the path of a frame may not use. It has no code of its own; the
// rules are the tables rules_test.go and hot_test.go.
package arrows
