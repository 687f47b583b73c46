package e2ek8s

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The daemons ran all of this with the rights that deploy/ gives them. The API
// server's own log of who asked for what says whether those suffice, and whether
// each of them was used.
func testRights(t *testing.T, r *rig) {
	granted := r.rights(t)
	if len(granted) == 0 {
		t.Fatal("vswitch has no rights at all")
	}
	accesses, err := r.Audit("system:serviceaccount:" + vswitchNamespace + ":" + vswitchAccount)
	if err != nil {
		t.Fatal(err)
	}
	used, denied := map[string]bool{}, map[string]bool{}
	for _, a := range accesses {
		resource := a.Resource
		if a.Subresource != "" {
			resource += "/" + a.Subresource
		}
		what := right(a.Verb, a.Group, resource)
		if a.Code == http.StatusForbidden {
			denied[what] = true
		} else {
			used[what] = true // it was let through, be it that the object was gone
		}
	}
	for what := range denied {
		// An API server that has just started forbids everything until it has read the
		// roles: what was let through at other times is no lack of rights.
		if !used[what] {
			t.Errorf("vswitch asked for what it has no right to: %s", what)
		}
	}
	for _, what := range granted {
		if !used[what] {
			t.Errorf("vswitch has a right that it never used: %s", what)
		}
	}
	t.Logf("vswitch used %d rights: %s", len(used), strings.Join(granted, "; "))
}

func right(verb, group, resource string) string {
	if group != "" {
		resource += "." + group
	}
	return verb + " " + resource
}

// rights are what the daemons' account was given, each once, sorted.
func (r *rig) rights(t *testing.T) []string {
	t.Helper()
	isOurs := func(subjects []rbacv1.Subject) bool {
		return slices.ContainsFunc(subjects, func(s rbacv1.Subject) bool {
			return s.Kind == rbacv1.ServiceAccountKind && s.Namespace == vswitchNamespace && s.Name == vswitchAccount
		})
	}
	var rules []rbacv1.PolicyRule
	role := func(ref rbacv1.RoleRef, namespace string) {
		if ref.Kind == "ClusterRole" {
			role, err := r.Client.RbacV1().ClusterRoles().Get(t.Context(), ref.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, role.Rules...)
			return
		}
		role, err := r.Client.RbacV1().Roles(namespace).Get(t.Context(), ref.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, role.Rules...)
	}
	everywhere, err := r.Client.RbacV1().ClusterRoleBindings().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range everywhere.Items {
		if isOurs(b.Subjects) {
			role(b.RoleRef, "")
		}
	}
	inNamespaces, err := r.Client.RbacV1().RoleBindings("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range inNamespaces.Items {
		if isOurs(b.Subjects) {
			role(b.RoleRef, b.Namespace)
		}
	}
	var all []string
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					if strings.Contains(group+resource+verb, "*") {
						t.Errorf("vswitch has a right to everything of a kind: %v", rule)
					}
					all = append(all, right(verb, group, resource))
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
