// Package slirp speaks slirp4netns(1)'s two languages: its command line, and the
// requests of its API socket. What was written to drive slirp4netns, RootlessKit's
// network and port drivers of that name and podman's among it, so drives vswitch.
//
// It opens nothing itself. Options that have no meaning here are taken and named
// (Options.Ignored), or, where ignoring them would promise what is not kept, refused.
package slirp
