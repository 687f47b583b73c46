// Package e2e tests the product end to end: the built binaries, real namespaces,
// the real plugin, kernel sockets and unmodified programs. It holds nothing but
// tests; each file is one promise to users.
package e2e
