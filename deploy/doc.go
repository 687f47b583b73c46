// Package deploy holds what installs vswitch: manifests for Kubernetes and a Helm chart
// that renders the same, an image, a systemd unit and packages, and a dashboard. It has
// no code; its tests hold these to each other and to the program.
package deploy
